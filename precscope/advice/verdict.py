"""The answer in one sentence, before any detail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from precscope.advice import keep_float32
from precscope.advice.actions import advise
from precscope.advice.measured_account import measured_account
from precscope.advice.wording import counted, listed
from precscope.formats import FORMATS
from precscope.origin_records import is_code_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.advice.evidence import Evidence
    from precscope.advice.finding import Finding
    from precscope.verification import Verification

__all__ = ["Verdict", "give_verdict"]


@dataclass(frozen=True)
class Verdict:
    """The answer.

    Attributes:
        level: "good" (nothing to do), "attention" (a warning), "bad" (an error) or "unknown" (nothing was seen).
        sentence: The answer.
        basis: What it rests on, and whether errors against float32 were measured.
        keep_float32: Ids of the layers to keep in float32.
    """

    level: Literal["good", "attention", "bad", "unknown"]
    sentence: str
    basis: str
    keep_float32: tuple[str, ...] = ()


def give_verdict(evidence: Evidence, findings: Sequence[Finding]) -> Verdict:
    """Return the answer that the findings come to, or what was proven where batches were replayed."""
    pins = keep_float32(findings)
    serious = [finding for finding in findings if finding.severity != "info"]
    basis = _basis(evidence)
    proof = evidence.run.verification
    if proof is not None and proof.proven:
        pins = proof.pins
        serious = [finding for finding in serious if finding.action != "keep_float32" or pins]
        if proof.is_of_another_default and not serious:
            return Verdict("good", _for_another_default(evidence, proof), basis, pins)
        if pins and not serious:
            sentence = f"{_keep(evidence, pins)} No finding said so; replayed batches do."
            return Verdict("attention", sentence, basis, pins)
    if serious:
        level: Literal["attention", "bad"] = "bad" if serious[0].severity == "error" else "attention"
        return Verdict(level, _diagnosis(evidence, serious, pins), basis, pins)
    if not evidence.samples:
        return Verdict("unknown", "No step was sampled, so nothing can be said yet.", basis)
    if not any(FORMATS[tensor.dtype].bits == 16 for tensor in evidence.run.tensors):
        return Verdict("good", "No recorded layer computes in 16 bits, and all values were finite.", basis)
    return Verdict("good", _nothing_to_do(evidence), basis)


def _nothing_to_do(evidence: Evidence) -> str:
    so_far = " so far" if evidence.run.status == "running" else ""
    wide = _in_float32(evidence)
    which = "No further layer" if wide else "No layer"
    there = f"{listed(wide, most=4)} {'is' if len(wide) == 1 else 'are'} in it already"
    proof = evidence.run.verification
    if evidence.measured.steps or (proof is not None and proof.proven):
        return f"{which} needs float32{so_far}{f'; {there}' if wide else ''}."
    unseen = "what 16 bits lose unseen was not measured"
    return f"{which} was seen to need float32{so_far}{f' ({there})' if wide else ''}; {unseen}."


def _for_another_default(evidence: Evidence, proof: Verification) -> str:
    """Return what a policy needs that the run was not trained under."""
    trained = f"Nothing is wrong with this run in {proof.trained}."
    if not proof.pins:
        return f"{trained} In {proof.default} no layer needs float32, as replayed batches show."
    keep = _keep(evidence, proof.pins)
    return f"{trained} For {proof.default} {keep[0].lower()}{keep[1:]} Replayed batches show it."


def _in_float32(evidence: Evidence) -> tuple[str, ...]:
    """Return the layers in float32 among others in 16 bits; of one whose owner is there too, the owner alone."""
    wide = {
        layer.id
        for layer in evidence.layers
        if layer.compute_dtype == "float32" and layer.type not in ("InputLayer", "batch") and not is_code_id(layer.id)
    }
    return tuple(layer.id for layer in evidence.layers if layer.id in wide and _owner(layer.id) not in wide)


def _owner(name: str) -> str:
    return name.rpartition("/")[0]


def _diagnosis(evidence: Evidence, serious: Sequence[Finding], pins: tuple[str, ...]) -> str:
    if not pins:
        return f"Float32 is not the answer here. {advise(serious[0])}"
    first = _keep(evidence, pins)
    if serious[0].action == "keep_float32":
        return first
    return f"{advise(serious[0])} Then: {first[0].lower()}{first[1:]}"


def _keep(evidence: Evidence, pins: tuple[str, ...]) -> str:
    return f"Keep {len(pins)} of {counted(_layers(evidence), 'layer')} in float32: {listed(pins, most=8)}."


def _layers(evidence: Evidence) -> int:
    """Return how many layers the model has, the batch and code between layers left aside."""
    return sum(not is_code_id(layer.id) for layer in evidence.layers)


def _basis(evidence: Evidence) -> str:
    outputs = {tensor.layer for tensor in evidence.run.tensors if tensor.kind == "activation"}
    recorded = sum(not is_code_id(name) for name in outputs)
    samples = evidence.samples
    layers = f"{recorded} of {counted(_layers(evidence), 'layer')} recorded"
    if not samples and not recorded:
        return f"Nothing was recorded yet of {counted(_layers(evidence), 'layer')}."
    if not samples:
        return f"The output of {recorded} of {counted(_layers(evidence), 'layer')} is to be recorded."
    first, last = samples[0].step, samples[-1].step
    account = measured_account(evidence.run)
    measured = "" if account is None else f" {account}"
    if len(samples) == 1:
        return f"Seen in one step only, step {last:,}; {layers}.{measured}"
    return (
        f"Seen in {len(samples):,} sampled steps from step {first:,} to {last:,}; {layers}. "
        f"Steps in between were not looked at.{measured}"
    )
