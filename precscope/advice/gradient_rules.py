"""Rules about gradients: too large for float16, or so small that they leak away."""

# ruff: noqa: D401 - a rule's docstring says what is wrong with a run; docs/rules.md is made from it.
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from precscope.advice.finding import Action, Finding, Number
from precscope.advice.readers import float16_readers
from precscope.advice.wording import counted, listed, of_samples, plain, quoted, share
from precscope.formats import FORMATS
from precscope.what_if import what_if

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.advice.evidence import Evidence
    from precscope.records import TensorRecord

__all__ = ["cure_of_underflow", "gradient_leak", "gradient_overflow"]

_FLOAT16 = FORMATS["float16"]
#: Keras layers whose weights have gradients by row (keras.src.backend.tensorflow.sparse: `densifying_unary` scatters
#: what `isfinite` says of each, the last of a row over those before it).
_SPARSE_GRADIENTS = ("Embedding",)


def gradient_overflow(evidence: Evidence) -> Iterator[Finding]:
    """A gradient was infinite or NaN, and nothing skips such a step.

    With a fixed loss scale, or with none, Keras applies the update all the same and the weights are lost. Lower a
    fixed scale, or better: let `LossScaleOptimizer` find it. Without a scale, keep the layer in float32 that is
    nearest the loss among those whose gradient overflowed. (With a dynamic scale see *skipped_steps*.) Where no sampled
    step saw the gradient, the weights tell: those that turned infinite or NaN first, after a forward pass that was
    finite, are those whose gradient overflowed. Under a dynamic scale that happens to an embedding: of several
    gradients of one row, Keras' check for overflow sees the last only, so a step may pass that should be skipped. A
    lower initial scale helps.
    """
    if evidence.loss_scaling == "dynamic":
        yield from _overflow_unnoticed(evidence)
        return
    if evidence.loss_scaling == "static" and not evidence.backward_sources:
        yield from _overflow_that_weights_show(evidence)
    for source in evidence.backward_sources[:1]:
        is_float16 = evidence.graph.by_id[source.layer].compute_dtype == "float16"
        action: Action = "fix_layer" if not is_float16 else "keep_float32"
        if evidence.loss_scaling == "static":
            action = "lower_loss_scale"
        where = of_samples(len(source.samples), len(evidence.samples), evidence.step(int(source.samples[0])))
        yield Finding(
            id="gradient_overflow",
            layer=source.layer,
            severity="error",
            confidence="observed",
            action=action,
            numbers={"sampled steps": Number(len(source.samples), 0)},
            sentence=(
                f"The gradient at {quoted(source.layer)} was infinite or NaN {where}, although the forward pass was "
                f"finite, and no loss scale skips such a step."
            ),
            consumers=float16_readers(evidence, source.layer) if action == "keep_float32" else (),
        )


def _overflow_that_weights_show(evidence: Evidence) -> Iterator[Finding]:
    """Yield the layers that a fixed loss scale did not protect."""
    first, scale = _weights_lost_behind_the_forward_pass(evidence), evidence.skips.last_scale
    if first is None or scale is None:
        return
    names = [layer.id for layer in evidence.layers if evidence.bad("weight", layer.id)[first]]
    if any(evidence.graph.by_id[name].compute_dtype == "float16" for name in names):
        yield _too_high_a_scale(
            names,
            scale,
            f"The weights of {listed(names)} turned infinite or NaN by step {evidence.step(first):,}, and no "
            f"forward pass had been so before: the gradient overflowed at the fixed loss scale of {plain(scale)}, and "
            f"such a step is not skipped.",
        )


def _overflow_unnoticed(evidence: Evidence) -> Iterator[Finding]:
    """Yield the embedding that a dynamic loss scale did not protect."""
    first = _weights_lost_behind_the_forward_pass(evidence)
    if first is None:
        return
    layers = [layer for layer in evidence.layers if evidence.bad("weight", layer.id)[first]]
    scale = evidence.samples[first].loss_scale
    # At a scale of 0 every weight is lost, and not by this.
    if not layers or not scale or any(layer.type not in _SPARSE_GRADIENTS for layer in layers):
        return
    names = [layer.id for layer in layers]
    yield _too_high_a_scale(
        names,
        scale,
        f"The weights of {listed(names)} turned infinite or NaN by step {evidence.step(first):,}, although the "
        f"forward pass was finite and the loss scale dynamic: of an embedding's gradients for the same row, Keras "
        f"checks the last only, and the overflow of another went unnoticed.",
    )


def _weights_lost_behind_the_forward_pass(evidence: Evidence) -> int | None:
    """Return the sample in which weights were bad first, if they became so in training, and no output before them."""
    bad = np.flatnonzero(evidence.any_bad("weight"))
    if not len(bad) or evidence.step(int(bad[0])) == 0:
        return None
    first = int(bad[0])
    return None if any(source.samples[0] <= first for source in evidence.forward_sources) else first


def _too_high_a_scale(names: list[str], scale: float, sentence: str) -> Finding:
    return Finding(
        id="gradient_overflow",
        layer=names[0],
        severity="error",
        confidence="observed",
        action="lower_loss_scale",
        numbers={"loss scale": Number(scale), "layers": Number(len(names))},
        sentence=sentence,
    )


def gradient_leak(evidence: Evidence) -> Iterator[Finding]:
    """Gradient values are so small that float16 keeps only a few of their digits, or none.

    Counted in the float16 gradients at the loss scale that the run ended with: the share of non-zero values that are
    subnormal. Most such values do not matter, so this is a remark unless the median value is subnormal *and* the
    gradient as a whole may have turned. How far is bounded from what was seen: a stored value below the smallest
    normal is off by at most half the smallest subnormal, and so is a zero, were it a flushed value; the bound takes
    all of them to be off by that much. What another loss scale would change is predicted from the histogram: a higher
    one, and none at all. If all gradients have room, raise the scale; if not, use bfloat16. A gradient of nothing but
    zeros counts as lost where the one that it is computed from has values, all of them below the smallest normal.
    """
    leaks = sorted(
        [*_leaks(evidence), *_vanished(evidence)],
        key=lambda leak: (leak.cosine >= evidence.thresholds.gradient_cosine, -leak.share),
    )
    noted = [leak for leak in leaks if leak.share > evidence.thresholds.subnormal_share_info]
    if noted:
        yield _leak_finding(evidence, noted)


@dataclass(frozen=True)
class _Leak:
    """A gradient that loses digits.

    Attributes:
        tensor: The gradient.
        share: The share of its non-zero values that are subnormal; 1 where all of it is zero.
        cosine: The least that its cosine to the exact gradient can be.
        witness: The gradient whose histogram tells what another scale would do.
    """

    tensor: TensorRecord
    share: float
    cosine: float
    witness: TensorRecord


def _leaks(evidence: Evidence) -> Iterator[_Leak]:
    samples = evidence.at_current_scale
    samples = samples[evidence.forward_finite[samples]]
    for tensor in evidence.tensors("gradient", dtype="float16"):
        finite = evidence.finite[samples, tensor.index]
        rows = samples[(finite > 0) & (evidence.nonfinite[samples, tensor.index] == 0)]
        nonzero = evidence.total(evidence.nonzero, [tensor], rows)
        if not nonzero:
            continue
        subnormals = evidence.total(evidence.counts("subnormals"), [tensor], rows)
        doubtful = subnormals + evidence.total(evidence.counts("zeros"), [tensor], rows)
        squares = np.square(evidence.values("rms")[rows, tensor.index])
        energy = float(np.sum(squares * evidence.finite[rows, tensor.index]))
        # A vector that is off by at most e has turned by at most asin(|e| / |v|).
        sine_squared = doubtful * _FLOAT16.flush_limit**2 / energy if energy > 0 else 1.0
        cosine = math.sqrt(max(0.0, 1.0 - sine_squared))
        yield _Leak(tensor, subnormals / nonzero, cosine, tensor)


def _vanished(evidence: Evidence) -> Iterator[_Leak]:
    """Yield gradients of nothing but zeros whose reader is given values, all of them too small for float16."""
    samples = evidence.at_current_scale
    samples = samples[evidence.forward_finite[samples]]
    if not len(samples):
        return
    for tensor in evidence.tensors("gradient", dtype="float16"):
        rows = samples[evidence.finite[samples, tensor.index] > 0]
        if not len(rows) or evidence.total(evidence.nonzero, [tensor], rows):
            continue
        for reader in evidence.graph.consumers(tensor.layer):
            for given in evidence.tensors("gradient", layer=reader):
                largest = evidence.highest([given], rows)
                if largest and largest < _FLOAT16.smallest_normal:
                    yield _Leak(tensor, 1.0, 0.0, given)


def _leak_finding(evidence: Evidence, leaks: list[_Leak]) -> Finding:
    limits, worst = evidence.thresholds, leaks[0]
    harmful = worst.share > limits.subnormal_share_warning and worst.cosine < limits.gradient_cosine
    room = _room_bits(evidence)
    raised, predicted = _prediction(evidence, worst.witness, room)
    others = len({leak.tensor.layer for leak in leaks}) - 1
    numbers = {
        "subnormal": Number(
            worst.share, limits.subnormal_share_warning if harmful else limits.subnormal_share_info, "share"
        ),
        "cosine, at least": Number(worst.cosine, limits.gradient_cosine, "cosine"),
    }
    if raised:
        numbers[f"subnormal at {2**raised:,} times the scale (predicted)"] = Number(predicted, None, "share")
    numbers |= _without_scaling(evidence, worst.witness)
    return Finding(
        id="gradient_leak",
        layer=worst.tensor.layer,
        severity="warning" if harmful else "info",
        confidence="observed",
        action=_cure(evidence, raised) if harmful else "none",
        numbers=numbers,
        sentence=(
            (
                f"The gradient at {quoted(worst.tensor.layer)} is zero, all of it, for it is computed from values too "
                f"small for float16"
                if worst.witness != worst.tensor
                else f"{share(worst.share)} of the non-zero gradient values at {quoted(worst.tensor.layer)} are "
                f"subnormal, so float16 keeps few of their digits"
            )
            + (f"; {counted(others, 'more layer')} above {share(limits.subnormal_share_info)}." if others else ".")
            + ("" if harmful else " They are too small to turn the gradient as a whole.")
        ),
    )


def cure_of_underflow(evidence: Evidence) -> Action:
    """Return what helps against gradients too small for float16: a scale, a higher one, or another format."""
    return _cure(evidence, _room_bits(evidence))


def _cure(evidence: Evidence, raised: int) -> Action:
    if evidence.loss_scaling == "none":
        return "wrap_optimizer"
    return "raise_loss_scale" if raised else "use_bfloat16"


def _room_bits(evidence: Evidence) -> int:
    """Return by how many whole bits all gradients could be scaled up and still keep one bit of headroom."""
    float16 = [layer.id for layer in evidence.layers if layer.compute_dtype == "float16"]
    tensors = [
        t for name in float16 for kind in ("gradient", "weight_gradient") for t in evidence.tensors(kind, layer=name)
    ]
    largest = evidence.highest(tensors, evidence.at_current_scale)
    if not largest:  # nothing is left of them: what they are computed from tells
        largest = evidence.highest(evidence.tensors("gradient"), evidence.at_current_scale)
    bits = _FLOAT16.headroom_bits(largest)
    return 0 if bits is None else max(0, math.floor(bits - 1))


def _without_scaling(evidence: Evidence, tensor: TensorRecord) -> dict[str, Number]:
    """Return the least share that would be zero without loss scaling; nothing where the scale is unknown."""
    scale = evidence.samples[-1].loss_scale
    if not scale:
        return {}
    answer = what_if(evidence.histograms(evidence.at_current_scale)[tensor.index], _FLOAT16, scale_ratio=1 / scale)
    flushed = int(answer.flushed.lower) / max(int(answer.nonzero), 1)
    return {"flushed without loss scaling, at least (predicted)": Number(flushed, None, "share")}


def _prediction(evidence: Evidence, tensor: TensorRecord, room_bits: int) -> tuple[int, float]:
    """Return by how many bits to raise the scale, and the share that would then be subnormal at most."""
    histogram = evidence.histograms(evidence.at_current_scale)[tensor.index]
    predicted = 1.0
    for raised in range(1, room_bits + 1):
        answer = what_if(histogram, _FLOAT16, scale_ratio=2.0**raised)
        predicted = int(answer.subnormal.upper) / max(int(answer.nonzero), 1)
        if predicted <= evidence.thresholds.subnormal_share_info:
            break
    return (raised, predicted) if room_bits else (0, predicted)
