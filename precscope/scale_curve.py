"""The loss scale against what it costs: flushed and overflowing gradients by layer, over scales from 1 to 2**24.

A loss scale only moves a gradient's exponents, so one recorded histogram tells all scales: everything here but the
headroom is predicted. What a float16 run had flushed already at its own scale is zero in its histogram and stays out of
the count, so its shares of flushed values are the least that they can be; those of a float32 run are complete.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from precscope.formats import FORMATS
from precscope.statistics import HISTOGRAM_BINS
from precscope.what_if import WhatIf, what_if

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from precscope.formats import FloatFormat
    from precscope.reader import Run
    from precscope.records import TensorRecord

__all__ = ["SCALES", "GradientTotals", "LayerCurve", "ScaleCurve", "gradient_totals", "scale_curve"]

#: The loss scales that are looked at.
SCALES: tuple[float, ...] = tuple(2.0**exponent for exponent in range(25))

_MOST_HISTOGRAMS = 128  # a histogram is read from the file a sample at a time
_ROOM_BITS = 2.0  # what the best scale leaves: gradients of steps that were not sampled may be larger


@dataclass(frozen=True)
class LayerCurve:
    """One layer's gradients over `SCALES`: shares of its non-zero values.

    Attributes:
        layer: Its id.
        flushed: The least share that would become zero at each scale.
        overflowed: The largest share that would become infinite at each scale.
        largest_scale: The largest scale of `SCALES` at which its gradients keep two bits of headroom; None where even
            1 leaves less.
    """

    layer: str
    flushed: tuple[float, ...]
    overflowed: tuple[float, ...]
    largest_scale: float | None


@dataclass(frozen=True)
class ScaleCurve:
    """What each loss scale would do, predicted from the sampled gradients.

    Attributes:
        layers: In the order of the forward pass.
        best_scale: The largest scale that leaves two bits of headroom to all gradients; None where even 1 does not.
        flushed_at_best: The least share of all non-zero gradient values that would become zero at it.
        limiting_layer: The layer whose gradient is the largest, and so limits the scale.
        largest_gradient: The largest gradient seen, unscaled.
        scale: The loss scale at the last sample; None without one.
        headroom_bits: How often that scale could double until the largest gradient leaves float16.
        samples: Number of sampled steps that this rests on.
    """

    layers: tuple[LayerCurve, ...]
    best_scale: float | None
    flushed_at_best: float | None
    limiting_layer: str
    largest_gradient: float
    scale: float | None
    headroom_bits: float | None
    samples: int


@dataclass(frozen=True)
class GradientTotals:
    """Tensors at one loss scale, summed over the samples in which they were finite.

    Of a run with more than 128 samples, `histograms` and `zeros` are of every k-th, so that a report stays quick.

    Attributes:
        scale: The loss scale that they carry; 1 without one.
        histograms: Counts uint64 [tensors, HISTOGRAM_BINS].
        largest: float64 [tensors], the largest magnitude; NaN where there is none.
        smallest: float64 [tensors], the smallest magnitude that is not zero; NaN where there is none.
        is_exact: bool [tensors], whether the histograms looked at every value of every sample.
        zeros: int64 [tensors].
        samples: Number of samples at this scale.
    """

    scale: float
    histograms: NDArray[np.uint64]
    largest: NDArray[np.float64]
    smallest: NDArray[np.float64]
    is_exact: NDArray[np.bool_]
    zeros: NDArray[np.int64]
    samples: int

    def what_if(self, float_format: FloatFormat, scale: float) -> WhatIf:
        """Return what `float_format` would do to these tensors at the loss scale `scale`."""
        return what_if(
            self.histograms,
            float_format,
            scale_ratio=scale / self.scale,
            absmax=self.largest,
            smallest_nonzero=self.smallest,
            is_exact=self.is_exact,
        )


def gradient_totals(run: Run, tensors: Sequence[TensorRecord]) -> list[GradientTotals]:
    """Return what the samples hold of `tensors`, by loss scale; a tensor with infinities or NaN is left out there."""
    groups: dict[float, list[int]] = defaultdict(list)
    for index, sample in enumerate(run.samples):
        if sample.loss_scale is None or sample.loss_scale > 0:
            groups[sample.loss_scale or 1.0].append(index)
    columns = [tensor.index for tensor in tensors]
    return [_totals(run, columns, scale, samples) for scale, samples in groups.items()]


def _totals(run: Run, columns: list[int], scale: float, samples: list[int]) -> GradientTotals:
    def field(name: str) -> NDArray[Any]:  # one by one: a copy of all fields takes as long as the rest
        values: NDArray[Any] = run.scalars[name][np.ix_(samples, columns)]
        return values

    zeros, bad = field("zeros"), field("positive_infinities") + field("negative_infinities") + field("nans")
    counts = field("count")
    fine = (bad == 0) & (counts > zeros)
    magnitude = np.maximum(np.abs(field("min")), np.abs(field("max"))).astype(np.float64)
    stride = -(-len(run.samples) // _MOST_HISTOGRAMS)
    shown = range(0, len(samples), stride)
    histograms = np.zeros((len(columns), HISTOGRAM_BINS), np.uint64)
    for row in shown:
        histograms += np.where(fine[row][:, None], run.histograms(samples[row])[columns], 0).astype(np.uint64)
    largest = np.max(np.where(fine, magnitude, -np.inf), axis=0, initial=-np.inf)
    smallest = np.min(np.where(fine, field("smallest_nonzero"), np.inf), axis=0, initial=np.inf)
    return GradientTotals(
        scale,
        histograms,
        np.where(np.isfinite(largest), largest, np.nan),
        np.where(np.isfinite(smallest), smallest, np.nan).astype(np.float64),
        np.all(~fine | (field("histogram_count") == counts), axis=0) & (stride == 1),
        np.sum(np.where(bad == 0, zeros, 0)[shown], axis=0).astype(np.int64),
        len(samples),
    )


def scale_curve(run: Run, *, also_float32: bool = False) -> ScaleCurve | None:
    """Return what each loss scale would do to the gradients that pass through float16; None where none was recorded.

    Args:
        run: A run that was read.
        also_float32: Take the gradients of float32 layers too, as if they were float16.
    """
    tensors = _narrow_gradients(run, also_float32)
    totals = gradient_totals(run, tensors) if tensors else []
    unscaled = np.array([total.largest / total.scale for total in totals])
    if not totals or not np.isfinite(unscaled).any():
        return None
    largest = np.nanmax(np.where(np.isnan(unscaled), -np.inf, unscaled), axis=0)
    shares = _shares(totals, len(tensors))
    rows = defaultdict(list)
    for row, tensor in enumerate(tensors):
        rows[tensor.layer].append(row)
    order = [layer.id for layer in run.layers if layer.id in rows]
    best = _largest_scale(float(largest.max()))
    scale = run.samples[-1].loss_scale
    return ScaleCurve(
        layers=tuple(_layer_curve(name, rows[name], shares, largest) for name in order),
        best_scale=best,
        flushed_at_best=None if best is None else _share(shares, slice(None))[0][SCALES.index(best)],
        limiting_layer=tensors[int(np.argmax(largest))].layer,
        largest_gradient=float(largest.max()),
        scale=scale,
        headroom_bits=None if not scale else FORMATS["float16"].headroom_bits(float(largest.max()) * scale),
        samples=sum(total.samples for total in totals),
    )


def _narrow_gradients(run: Run, also_float32: bool) -> list[TensorRecord]:
    computes = {layer.id: layer.compute_dtype for layer in run.layers}
    wanted = ("float16", "float32") if also_float32 else ("float16",)
    gradients = [tensor for tensor in run.tensors if tensor.kind == "gradient" and tensor.dtype in wanted]
    own = [t for t in run.tensors if t.kind == "weight_gradient" and computes.get(t.layer) in wanted]
    return gradients + own


#: int64 [tensors, scales]: flushed at least, overflowed at most; int64 [tensors]: non-zero values.
_Counts = tuple["NDArray[np.int64]", "NDArray[np.int64]", "NDArray[np.int64]"]


def _shares(totals: Sequence[GradientTotals], tensors: int) -> _Counts:
    flushed = np.zeros((tensors, len(SCALES)), np.int64)
    overflowed, nonzero = flushed.copy(), np.zeros(tensors, np.int64)
    for total in totals:
        for column, scale in enumerate(SCALES):
            answer = total.what_if(FORMATS["float16"], scale)
            flushed[:, column] += answer.flushed.lower
            overflowed[:, column] += answer.overflow.upper
        nonzero += answer.nonzero
    return flushed, overflowed, nonzero


def _share(counts: _Counts, rows: slice | list[int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    flushed, overflowed, nonzero = (count[rows].sum(axis=0) for count in counts)
    whole = max(int(nonzero), 1)
    return tuple(map(float, flushed / whole)), tuple(map(float, overflowed / whole))


def _layer_curve(layer: str, rows: list[int], counts: _Counts, largest: NDArray[np.float64]) -> LayerCurve:
    flushed, overflowed = _share(counts, rows)
    return LayerCurve(layer, flushed, overflowed, _largest_scale(float(largest[rows].max())))


def _largest_scale(gradient: float) -> float | None:
    """Return the largest of `SCALES` at which `gradient` keeps its room; None where none does."""
    if not math.isfinite(gradient) or gradient <= 0:
        return SCALES[-1]
    room = FORMATS["float16"].headroom_bits(gradient)
    fitting = [scale for scale in SCALES if room is not None and math.log2(scale) <= room - _ROOM_BITS]
    return fitting[-1] if fitting else None
