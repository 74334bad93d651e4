"""The loss scale of a run: what it is doing, why steps were skipped, and which layer overflowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from precscope.advice.loss_scale_verdict import Cause, ForwardFault, SampledStep, SkippedStretch, main_cause
from precscope.advice.questions import is_input
from precscope.advice.wording import counted, plain, quoted
from precscope.formats import FORMATS

if TYPE_CHECKING:
    from precscope.advice.evidence import Evidence

__all__ = ["CAUSES", "Culprit", "LossScaleAccount", "culprit", "loss_scale_account", "sampled_steps"]

_FLOAT16 = FORMATS["float16"]
#: Each cause in words.
CAUSES: dict[Cause, str] = {
    "search": "the first search for its level: healthy",
    "probe": "the scale had been doubled once too often: healthy",
    "spike": "a scale that had held was too high for a moment; training went on",
    "bad_batch": "far more than the scale explains: bad data, or a batch whose gradients exploded",
    "forward_overflow": "the forward pass was not finite, which no loss scale can mend",
    "bad_weights": "the weights were not finite already",
    "any_scale": "step after step, at every scale",
    "collapse": "step after step, until the scale fell below 1",
}


@dataclass(frozen=True)
class Culprit:
    """What overflowed first, seen in a sampled step that was skipped.

    Attributes:
        step: The train step.
        layer: The layer nearest the loss whose gradient was not finite, or the first whose output was not.
        variable: The first variable in backward order whose gradient was not finite; None where none was recorded so.
        is_forward: Whether an output overflowed, not a gradient.
        loss_scale: The loss scale of that step; None where unknown.
    """

    step: int
    layer: str
    variable: str | None
    is_forward: bool
    loss_scale: float | None


@dataclass(frozen=True)
class LossScaleAccount:
    """The loss scale in words.

    Attributes:
        level: "good", "attention" or "bad"; "unknown" where nothing tells.
        sentence: What the loss scale does.
        stretches: Every stretch of skipped steps with its cause, in order.
        culprit: What overflowed first; None where no sampled step was skipped.
    """

    level: Literal["good", "attention", "bad", "unknown"]
    sentence: str
    stretches: tuple[SkippedStretch, ...]
    culprit: Culprit | None


def sampled_steps(evidence: Evidence) -> list[SampledStep]:
    """Return what each sampled step tells about a skip."""
    if not evidence.samples:
        return []
    inputs = [layer.id for layer in evidence.layers if is_input(layer)]
    data, weights = evidence.any_bad("activation", inputs), evidence.any_bad("weight")
    forward = evidence.any_bad("activation")
    steps = []
    for index, sample in enumerate(evidence.samples):
        if sample.loss_scale is None or sample.applied is None:
            continue
        fault: ForwardFault | None = "weights" if weights[index] else "data" if data[index] else None
        if fault is None and forward[index]:
            fault = "forward"
        room = _headroom(evidence, index)
        steps.append(SampledStep(sample.step, not sample.applied, sample.loss_scale, fault, room))
    return steps


def _headroom(evidence: Evidence, sample: int) -> float | None:
    columns = [tensor.index for tensor in evidence.float16_gradients]
    if not columns or evidence.nonfinite[sample, columns].any():
        return None
    known = evidence.absmax[sample, columns]
    known = known[np.isfinite(known)]
    return _FLOAT16.headroom_bits(float(known.max())) if known.size else None


def culprit(evidence: Evidence, stretch: SkippedStretch | None = None) -> Culprit | None:
    """Return what overflowed first in the sampled steps that were skipped, of one stretch where given."""
    for sources, is_forward in ((evidence.forward_sources, True), (evidence.backward_sources, False)):
        for source in sources:
            for index in source.samples:
                sample = evidence.samples[int(index)]
                inside = stretch is None or stretch.earliest <= sample.step <= stretch.latest
                if sample.applied is False and inside:
                    variable = None if is_forward else _first_variable(evidence, int(index))
                    return Culprit(sample.step, source.layer, variable, is_forward, sample.loss_scale)
    return None


def _first_variable(evidence: Evidence, sample: int) -> str | None:
    """Return "layer/variable" of the last layer in forward order whose weight gradient was not finite."""
    for layer in reversed(evidence.layers):
        for tensor in evidence.tensors("weight_gradient", layer=layer.id):
            if evidence.nonfinite[sample, tensor.index]:
                return f"{layer.id}/{tensor.name}"
    return None


def loss_scale_account(evidence: Evidence) -> LossScaleAccount | None:
    """Return what the loss scale does; None where no layer computes in float16 and nothing is scaled."""
    scaling = evidence.loss_scaling
    if scaling in (None, "none"):
        return _unscaled(evidence)
    if scaling == "static":
        scale = evidence.skips.last_scale
        at = "" if scale is None else f" at {plain(scale)}"
        text = f"The loss scale is fixed{at}: it never adapts, and a step whose gradients overflow is not skipped."
        return LossScaleAccount("good", text, (), None)
    stretches = evidence.skipped_stretches
    return _dynamic(evidence, stretches, culprit(evidence))


def _unscaled(evidence: Evidence) -> LossScaleAccount | None:
    if evidence.loss_scaling is None or not any(layer.compute_dtype == "float16" for layer in evidence.layers):
        return None
    text = "The loss is not scaled although layers compute in float16: small gradients become zero unnoticed."
    return LossScaleAccount("attention", text, (), None)


def _dynamic(evidence: Evidence, stretches: tuple[SkippedStretch, ...], found: Culprit | None) -> LossScaleAccount:
    skips = evidence.skips
    scale = "not known" if skips.last_scale is None else plain(skips.last_scale)
    amount = f"{skips.skipped or 0:,} of {counted(skips.seen, 'step')} skipped"
    cause = main_cause(stretches)
    where = _where(found)
    if cause is None:
        if not skips.seen:
            return LossScaleAccount("unknown", "The loss scale is not known yet: no step was seen.", stretches, found)
        if skips.skipped or skips.last_scale is None:  # judged by sampled steps alone, or never looked at
            return LossScaleAccount("unknown", f"The loss scale: {scale}, {amount}.", stretches, found)
        text = f"The loss scale is healthy: it stands at {scale}, and no step was skipped."
        return LossScaleAccount("good", f"{text}{_growth(evidence)}", stretches, found)
    worst = next(stretch for stretch in stretches if stretch.cause == cause)
    if not worst.is_fault and skips.last_scale is not None and skips.last_scale <= 1:
        text = f"The loss scale sank to {scale}, which scales nothing: gradients overflow above that ({amount})."
        return LossScaleAccount("attention", f"{text}{where}", stretches, found)
    if not worst.is_fault:
        kinds = [stretch.cause for stretch in stretches]
        parts = [
            words
            for name, words in (
                ("search", "once while it sought its first level"),
                ("probe", f"{_times(kinds.count('probe'))} after it had been raised too high"),
                ("spike", f"{_times(kinds.count('spike'))} for a moment"),
            )
            if name in kinds
        ]
        text = f"The loss scale is healthy: it stands at {scale}, and overflowed {_joined(parts)} ({amount})."
        return LossScaleAccount("good", f"{text}{_growth(evidence)}", stretches, found)
    falling = "is falling" if not worst.recovered else "fell"
    at = _at(worst)
    if worst.cause == "bad_batch":
        text = f"The loss scale is not to blame for {counted(worst.skipped, 'skipped step')} ({at}): {CAUSES[cause]}."
        return LossScaleAccount("attention", f"{text}{where}", stretches, found)
    text = f"The loss scale {falling}, to {scale} by now ({amount}; {at}): {CAUSES[cause]}.{where}"
    return LossScaleAccount("bad", text, stretches, found)


def _at(stretch: SkippedStretch) -> str:
    if not stretch.is_exact:
        return f"between step {stretch.earliest:,} and {stretch.latest:,}"
    if stretch.earliest == stretch.latest:
        return f"step {stretch.earliest:,}"
    return f"steps {stretch.earliest:,} to {stretch.latest:,}"


def _where(found: Culprit | None) -> str:
    if found is None:
        return " Which layer overflowed first is not known: no skipped step was sampled."
    part = "output" if found.is_forward else "gradient"
    variable = f", first variable {quoted(found.variable)}" if found.variable else ""
    at = "" if found.loss_scale is None else f" at scale {plain(found.loss_scale)}"
    return f" The {part} of {quoted(found.layer)} overflowed first{at}, step {found.step:,}{variable}."


def _growth(evidence: Evidence) -> str:
    steps = evidence.scale_history.until_growth
    return "" if steps is None else f" It doubles after {counted(steps, 'more finite step')}."


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _joined(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
