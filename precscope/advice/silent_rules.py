"""Rules about layers that lose their values in silence, where no reference step measured them: told by signatures."""

# ruff: noqa: D401 - a rule's docstring says what is wrong with a run; docs/rules.md is made from it.
from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from precscope.advice.finding import Finding, Number
from precscope.advice.questions import given_to, is_input, outputs_of
from precscope.advice.wording import listed, plain, quoted
from precscope.formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.advice.evidence import Evidence
    from precscope.records import LayerRecord, TensorRecord

__all__ = ["cast_rounding", "stalled_sum", "vanished_output"]

_FEWEST_SAMPLES = 4  # fewer do not tell whether a value stays


def cast_rounding(evidence: Evidence) -> Iterator[Finding]:
    """Values that lie close together, far from zero, are rounded to a few steps on their way into a layer.

    A 16-bit layer casts what it is given. Around 1,000 float16 knows steps of a half, and around 5,000 of 4: of
    measurements around 1,013 that differ by 0.2 nothing is left. Predicted from the smallest and the largest value,
    and only where no reference step measured the layer: warned of where one step is more than a twentieth of the range
    of all values; where both ends are whole numbers, only if a step is more than 1. Keep the layer in float32, or
    subtract the mean from the data.
    """
    for layer in _unmeasured(evidence):
        tensors = given_to(evidence, layer)
        steps = [_step_share(evidence, layer, tensor) for tensor in tensors] if layer.autocast else []
        limit = evidence.thresholds.own_error
        # Which of several outputs a layer reads is not known.
        if not steps or not all(step is not None and step > limit for step in steps):
            continue
        givers = list(dict.fromkeys(tensor.layer for tensor in tensors))
        from_data = all(is_input(evidence.graph.by_id[name]) for name in givers)
        yield Finding(
            id="cast_rounding",
            layer=layer.id,
            severity="warning",
            confidence="predicted",
            action="keep_float32",
            numbers={
                "step / range": Number(min(filter(None, steps)), limit, "share"),
                "largest input": Number(evidence.highest(tensors)),
            },
            sentence=(
                f"{quoted(layer.id)} casts what it is given by {listed(givers)} to {layer.compute_dtype}, whose steps "
                f"there are as large as {plain(round(100 * min(filter(None, steps)), 1))}% of the range of the values."
            ),
            alternative="scale_input" if from_data else None,
        )


def vanished_output(evidence: Evidence) -> Iterator[Finding]:
    """A float16 layer without weights puts out nothing but zeros, and the squares of its input exceed float16.

    So does a norm whose variance, or whose length, is infinite inside: what is divided by it is zero. Every number that
    can be seen is finite. Predicted where no reference step measured the layer, and only if the sum of the squares of
    one example's values is beyond float16's largest number, and no sample holds an output that is not zero.
    """
    largest = FORMATS["float16"].max
    for layer in _unmeasured(evidence):
        outputs = outputs_of(evidence, [layer.id], "float16")
        given = given_to(evidence, layer)
        if (
            not outputs
            or layer.parameters
            or layer.compute_dtype != "float16"
            or evidence.total(evidence.nonzero, outputs)
            or evidence.total(evidence.nonfinite, outputs)
        ):
            continue
        squares = max((_sum_of_squares(evidence, tensor) for tensor in given), default=0.0)
        if squares <= largest or not evidence.total(evidence.finite, outputs):
            continue
        yield Finding(
            id="vanished_output",
            layer=layer.id,
            severity="warning",
            confidence="predicted",
            action="keep_float32",
            numbers={"sum of squares of an example": Number(squares, largest)},
            sentence=(
                f"All that {quoted(layer.id)} puts out is zero, and the squares of what it is given add up to "
                f"{plain(squares)}, while float16 ends at {plain(largest)}: it seems to divide by infinity."
            ),
        )


def stalled_sum(evidence: Evidence) -> Iterator[Finding]:
    """The largest output of a layer is 2,048 in float16, or 256 in bfloat16, and stays there.

    From that number on the format no longer holds every whole number, so that a sum to which 1 or less is added stands
    still. Predicted where no reference step measured the layer, if it has no weights, is given nothing larger than 1,
    and its largest output is exactly that number in four samples or more and in all of them.
    """
    for layer in _unmeasured(evidence):
        outputs = outputs_of(evidence, [layer.id], layer.compute_dtype)
        given = given_to(evidence, layer)
        largest = evidence.highest(given)
        if len(evidence.samples) < _FEWEST_SAMPLES or not outputs or layer.parameters or not largest or largest > 1:
            continue
        end = FORMATS[layer.compute_dtype].largest_exact_integer
        peaks = evidence.absmax[:, [tensor.index for tensor in outputs]]
        if not np.all(np.nanmax(np.nan_to_num(peaks), axis=1) == end):
            continue
        yield Finding(
            id="stalled_sum",
            layer=layer.id,
            severity="warning",
            confidence="predicted",
            action="keep_float32",
            numbers={"largest output": Number(float(end), end)},
            sentence=(
                f"The largest output of {quoted(layer.id)} is {end:,} in every sample, where a sum of ones stands "
                f"still in {layer.compute_dtype}."
            ),
        )


def _unmeasured(evidence: Evidence) -> Iterator[LayerRecord]:
    """Yield the layers that compute in 16 bits of whose own error nothing was measured."""
    for layer in evidence.layers:
        narrow = layer.compute_dtype in FORMATS and FORMATS[layer.compute_dtype].bits == 16
        inside = layer.id in evidence.graph.contents
        if narrow and not inside and not is_input(layer) and not evidence.measured.own(layer.id, "activation"):
            yield layer


def _step_share(evidence: Evidence, layer: LayerRecord, tensor: TensorRecord) -> float | None:
    """Return the format's step at the values of least magnitude, as a share of their range; None where it is exact."""
    narrow = FORMATS[layer.compute_dtype]
    known = np.flatnonzero(evidence.finite[:, tensor.index])
    if not len(known) or FORMATS[tensor.dtype].mantissa_bits <= narrow.mantissa_bits:
        return None
    low = float(evidence.values("min")[known, tensor.index].min())
    high = float(evidence.values("max")[known, tensor.index].max())
    nearest = min(abs(low), abs(high))
    if low >= high or low * high <= 0 or nearest > narrow.max:
        return None
    step = math.ldexp(narrow.epsilon, math.frexp(nearest)[1] - 1)
    if low.is_integer() and high.is_integer() and step <= 1:
        return None
    return step / (high - low)


def _sum_of_squares(evidence: Evidence, tensor: TensorRecord) -> float:
    """Return the sum of the squares of one example's values, on average."""
    known = np.flatnonzero(evidence.finite[:, tensor.index])
    if not len(known) or tensor.shape is None or None in tensor.shape[1:]:
        return 0.0
    return float(np.mean(evidence.values("rms")[known, tensor.index] ** 2)) * math.prod(
        size or 0 for size in tensor.shape[1:]
    )
