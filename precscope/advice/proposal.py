"""From findings to a precision policy: what to pin, what was off the default already, what the optimizer needs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from precscope.advice import keep_float32
from precscope.formats import FORMATS
from precscope.policy import MODEL, KeptLayer, MadeFor, OptimizerNeeds, Pin, Policy, Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.advice.evidence import Evidence
    from precscope.advice.finding import Finding

__all__ = ["default_policy", "propose_policy", "reasons_for"]

#: What Keras' LossScaleOptimizer begins with (keras.src.optimizers.loss_scale_optimizer).
_KERAS_INITIAL_SCALE = 2.0**15


def propose_policy(evidence: Evidence, findings: Sequence[Finding], pins: Sequence[str] | None = None) -> Policy:
    """Return the policy that `findings` ask for, unproven.

    Args:
        evidence: The run.
        findings: What the rules found in it.
        pins: Ids of the layers to keep in float32; by default those that warnings and errors name.
    """
    record = evidence.record
    pins = keep_float32(findings) if pins is None else pins
    types = {layer.id: layer.type for layer in evidence.layers if layer.id != MODEL}
    default = _advised_default(evidence, findings, pins)
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
    floating = [layer for layer in evidence.layers if layer.compute_dtype in FORMATS]
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
    layers = [layer for layer in evidence.layers if layer.type != "InputLayer" and layer.id != MODEL]
    return tuple(model + [KeptLayer(layer.id, layer.policy) for layer in layers if layer.policy != default])


def _optimizer_needs(evidence: Evidence, default: str) -> OptimizerNeeds:
    """Return what float16 asks of the optimizer: a scaled loss. A fixed scale that the user chose stays."""
    computes_in_float16 = default == "mixed_float16" or (
        default == default_policy(evidence) and any(layer.compute_dtype == "float16" for layer in evidence.layers)
    )
    if not computes_in_float16 or evidence.loss_scaling == "static":
        return OptimizerNeeds()
    return OptimizerNeeds(True, evidence.record.model.get("initial_loss_scale") or _KERAS_INITIAL_SCALE)
