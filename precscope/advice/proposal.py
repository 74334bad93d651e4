"""From findings to a precision policy: what to pin, what was off the default already, what the optimizer needs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from precscope.advice import Evidence, analyze, keep_float32
from precscope.advice.wording import counted, listed
from precscope.formats import FORMATS
from precscope.origin_records import is_code_id
from precscope.policy import MODEL, KeptLayer, MadeFor, OptimizerNeeds, Pin, Policy, Proof, Reason
from precscope.replay import LEAST_SCALE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.advice.finding import Finding
    from precscope.reader import Run
    from precscope.verification import Verification

__all__ = [
    "default_policy",
    "policy_of_evidence",
    "policy_of_run",
    "propose_policy",
    "reasons_for",
    "scale_to_begin_with",
    "verdict_sentence",
    "verified_policy",
]

#: What Keras' LossScaleOptimizer begins with (keras.src.optimizers.loss_scale_optimizer).
_KERAS_INITIAL_SCALE = 2.0**15

#: Of a layer that no finding names.
_FROM_REPLAY = Reason("replay", "measured", "Without it, replayed batches do not agree with float32.")

#: Of a proof whose worst cosine is below the threshold.
_BY_NOISE = " Where a cosine is below the threshold, the errors drown in the noise that batches have anyway."


def policy_of_run(run: Run) -> Policy:
    """Return the policy that a run asks for: what was verified by replay, otherwise what its findings advise.

    Raises:
        RunDirectoryError: The verification is damaged.
    """
    evidence = Evidence(run)
    return policy_of_evidence(evidence, analyze(evidence))


def policy_of_evidence(evidence: Evidence, findings: Sequence[Finding]) -> Policy:
    """Return what `policy_of_run` does, where the findings were made before."""
    verification = evidence.run.verification
    if verification is None:
        return propose_policy(evidence, findings)
    proposal = propose_policy(evidence, findings, verification.pins, verification.default)
    return verified_policy(proposal, verification)


def verified_policy(policy: Policy, verification: Verification) -> Policy:
    """Return `policy`, which pins what the verification pins, with the outcome and the prices."""
    pins = tuple(
        replace(
            pin,
            reasons=pin.reasons or ((_FROM_REPLAY,) if verification.is_minimal else ()),
            price=verification.pin_prices.get(pin.layer),
        )
        for pin in policy.pins
    )
    after = verification.after
    proof = Proof(
        sentence=verdict_sentence(verification) + (_BY_NOISE if after is not None and after.passed_as_noise else ""),
        cosine_before=verification.before.worst.cosine,
        cosine_after=None if after is None else after.worst.cosine,
        threshold=verification.criterion.gradient_cosine,
        batches=len(verification.batches),
        loss_scales=tuple(dict.fromkeys(r.loss_scale for r in (after or verification.before).replays)),
        device=verification.device,
    )
    optimizer = _begun_where_it_settles(policy.optimizer, verification)
    return replace(policy, pins=pins, optimizer=optimizer, proven=verification.proven, proof=proof)


def _begun_where_it_settles(needs: OptimizerNeeds, verification: Verification) -> OptimizerNeeds:
    """Return the optimizer's needs with the loss scale that passes, so that no step is skipped while it is sought."""
    scales = [scale for scale in (needs.initial_scale, scale_to_begin_with(verification)) if scale is not None]
    return replace(needs, initial_scale=min(scales)) if needs.loss_scale_optimizer and scales else needs


def scale_to_begin_with(verification: Verification) -> float | None:
    """Return the loss scale at which all batches pass, where that is not the one that training begins with.

    Where nothing is pinned, the run itself shows where the scale settles: that counts for more than a few batches do.
    """
    after = verification.after
    if after is None:
        return None
    passed = [after.settled_scale] if after.settled_scale is not None else []
    if verification.nothing_needed:
        seen = [replay.loss_scale for replay in after.informing if replay.passed]
        passed += [scale for scale in seen if scale >= LEAST_SCALE]
    return min(passed, default=None)


def verdict_sentence(verification: Verification) -> str:
    """Return the outcome of a verification in one sentence."""
    pins, batches = verification.pins, counted(len(verification.batches), "batch").replace("batchs", "batches")
    under = f"in {verification.default}, " if verification.is_of_another_default else ""
    if verification.nothing_needed:
        scale = scale_to_begin_with(verification)
        begins = "" if scale is None else f", with a loss scale that begins at {scale:,g}"
        return f"Proven by replaying {batches}: {under}no layer needs float32{begins}."
    if verification.proven:
        smallest = "" if verification.is_minimal else "; a smaller set may do, the search was cut short"
        return f"Proven by replaying {batches}: {under}{listed(pins, most=8)} in float32 suffice{_s(pins)}{smallest}."
    worst = verification.before.worst
    return (
        f"Not proven: no set of layers that was tried in float32 agrees with float32 on {batches} "
        f"({counted(verification.trials, 'set')}). Plain {verification.before_policy}: {worst.why_not or 'it passes'}."
    )


def _s(names: Sequence[str]) -> str:
    return "s" if len(names) == 1 else ""


def propose_policy(
    evidence: Evidence, findings: Sequence[Finding], pins: Sequence[str] | None = None, default: str | None = None
) -> Policy:
    """Return the policy that `findings` ask for, unproven.

    Args:
        evidence: The run.
        findings: What the rules found in it.
        pins: Ids of the layers to keep in float32; by default those that warnings and errors name.
        default: Name of the default policy; by default the one that they advise.
    """
    record = evidence.record
    pins = keep_float32(findings) if pins is None else pins
    types = {layer.id: layer.type for layer in evidence.layers if not is_code_id(layer.id)}
    default = default or _advised_default(evidence, findings, pins)
    return Policy(
        default=default,
        made_for=MadeFor(
            model=str(record.model.get("name") or "model"),
            model_class=str(record.model.get("class") or "Model"),
            run=record.name,
            started_unix_s=record.started_unix_s,
            layers=types,
        ),
        pins=tuple(Pin(layer, "float32", types.get(layer, "Layer"), reasons_for(layer, findings)) for layer in pins),
        kept=_off_the_default(evidence),
        optimizer=_optimizer_needs(evidence, default),
    )


def reasons_for(layer: str, findings: Sequence[Finding]) -> tuple[Reason, ...]:
    """Return the findings that ask for `layer` in float32, as the one where it begins or as one that reads it."""
    return tuple(
        Reason(
            finding.id,
            finding.confidence,
            finding.sentence,
            {name: number.value for name, number in finding.numbers.items()},
        )
        for finding in findings
        if finding.action == "keep_float32" and layer in (finding.layer, *finding.consumers)
    )


def default_policy(evidence: Evidence) -> str:
    """Return the policy that most of the model's layers follow, of those that compute in 16 bits if there are any.

    The model's own policy will not do: layers may have been given theirs one by one.
    """
    floating = [layer for layer in evidence.layers if layer.compute_dtype in FORMATS and not is_code_id(layer.id)]
    narrow = [layer for layer in floating if FORMATS[layer.compute_dtype].bits == 16]
    counts = Counter(layer.policy for layer in narrow or floating)
    return counts.most_common(1)[0][0] if counts else str(evidence.record.model.get("dtype_policy") or "float32")


def _advised_default(evidence: Evidence, findings: Sequence[Finding], pins: Sequence[str]) -> str:
    default = default_policy(evidence)
    serious = [finding for finding in findings if finding.severity != "info"]
    if default == "mixed_float16" and not pins and serious and serious[0].action == "use_bfloat16":
        return "mixed_bfloat16"
    return default


def _off_the_default(evidence: Evidence) -> tuple[KeptLayer, ...]:
    """Return the layers that are kept as they are; the model itself too, whose policy casts what is fed to it."""
    default = default_policy(evidence)
    own = evidence.record.model.get("dtype_policy")
    model = [KeptLayer(MODEL, str(own))] if own and own != default else []
    layers = [layer for layer in evidence.layers if layer.type != "InputLayer" and not is_code_id(layer.id)]
    return tuple(model + [KeptLayer(layer.id, layer.policy) for layer in layers if layer.policy != default])


def _optimizer_needs(evidence: Evidence, default: str) -> OptimizerNeeds:
    """Return what float16 asks of the optimizer: a scaled loss. A fixed scale that the user chose stays."""
    computes_in_float16 = default == "mixed_float16" or (
        default == default_policy(evidence) and any(layer.compute_dtype == "float16" for layer in evidence.layers)
    )
    if not computes_in_float16 or evidence.loss_scaling == "static":
        return OptimizerNeeds()
    return OptimizerNeeds(True, evidence.record.model.get("initial_loss_scale") or _KERAS_INITIAL_SCALE)
