"""The layers of a run that is being written: how each stood at the last sample, and where it is heading."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from precscope.advice import Thresholds
from precscope.advice.layer_graph import LayerGraph
from precscope.formats import FORMATS
from precscope.reports.text import printable
from precscope.worker_tail import RECENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from precscope.advice.finding import Severity
    from precscope.records import LayerRecord, TensorRecord
    from precscope.worker_tail import FreshSample, WorkerTail

__all__ = ["LayerNow", "LayerWatch"]

#: A trend is a straight line through so many samples at least,
_LEAST_SAMPLES = 4
#: that explains so much of the headroom's variance; the rest is noise.
_LEAST_FIT = 0.5
#: How far ahead a trend is drawn on: so many times as many steps as it was seen over.
_FORESIGHT = 10
_NARROW_BITS = 16

_BAD_OUTPUT, _BAD_GRADIENT, _GOOD = range(3)


@dataclass(frozen=True)
class LayerNow:
    """One layer at the last sample.

    Attributes:
        id: Its id.
        name: The same, printable.
        type: Class name, printable.
        compute_dtype: dtype of its computation, printable.
        severity: How bad it is; None where nothing is wrong.
        headroom_bits: Least headroom of its 16-bit outputs; None without any, or without a finite non-zero value.
        history: That headroom at the last samples, the oldest first: None where it is unknown, minus infinity where the
            output held infinities or NaN.
        bits_per_1000_steps: Slope of a straight line through the history; None where there is no clear trend.
        overflow_step: The step at which that line reaches no headroom: extrapolated. None where it does not, or too far
            ahead to say.
        subnormal_share: Share of subnormal values among the non-zero ones of its 16-bit gradients; None without any.
        bad: Infinities and NaN in its outputs and gradients.
        rank: Sorts layers of several workers, worst first.
    """

    id: str
    name: str
    type: str
    compute_dtype: str
    severity: Severity | None
    headroom_bits: float | None
    history: tuple[float | None, ...]
    bits_per_1000_steps: float | None
    overflow_step: int | None
    subnormal_share: float | None
    bad: int
    rank: tuple[float, ...]


class LayerWatch:
    """Keeps, for each layer of one worker, its state at the last sample and its headroom at the last few.

    Args:
        thresholds: Where a headroom becomes a warning.
    """

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self._thresholds = thresholds or Thresholds()
        self._records: tuple[LayerRecord, ...] = ()
        self._layers: list[LayerRecord] = []
        self._headroom = np.full((RECENT, 0), np.nan)
        self._tensors = 0
        self._last_sample = -1
        self._steps = np.full(RECENT, np.nan)
        self._arrange((), ())

    @property
    def layers(self) -> int:
        """How many layers are recorded."""
        return len(self._layers)

    def take(self, tail: WorkerTail) -> None:
        """Take what the worker's last look found."""
        if tail.fresh and (len(tail.tensors) != self._tensors or tuple(tail.layers.values()) != self._records):
            self._arrange(tuple(tail.layers.values()), tail.tensors)
        for fresh in tail.fresh:
            if fresh.sample.index > self._last_sample:
                self._last_sample = fresh.sample.index
                self._take_sample(fresh)

    def rows(self, most: int) -> tuple[LayerNow, ...]:
        """Return the worst layers at the last sample, at most `most`.

        First those whose output is not finite, from the first in forward order on, where it began; then those whose
        gradient is not, from the last on; then by least headroom.
        """
        if self._last_sample < 0:
            return ()
        level, second, third = self._ranks()
        # A container's output is that of a layer inside it, which is the one that is meant.
        chosen = [row for row in np.lexsort((third, second, level)) if not self._is_container[row]][:most]
        slopes, ends = _trends(self._steps, self._headroom[:, chosen])
        return tuple(
            self._row(row, slope, end, (level[row], second[row], third[row]))
            for row, slope, end in zip(chosen, slopes, ends, strict=True)
        )

    def _arrange(self, records: Sequence[LayerRecord], tensors: Sequence[TensorRecord]) -> None:
        """Lay out the arrays for these layers and tensors; what was known of a layer goes with it."""
        old = dict(zip([layer.id for layer in self._layers], self._headroom.T, strict=True))
        recorded = {tensor.layer for tensor in tensors}
        graph = LayerGraph(records)
        self._records, self._tensors = tuple(records), len(tensors)
        self._layers = [layer for layer in graph.layers if layer.id in recorded]
        self._is_container = np.array([layer.id in graph.contents for layer in self._layers], bool)
        place = {layer.id: number for number, layer in enumerate(self._layers)}
        self._layer_of = np.array([place.get(tensor.layer, -1) for tensor in tensors], np.intp)
        self._is_output = np.array([tensor.kind == "activation" for tensor in tensors], bool)
        self._is_gradient = np.array([tensor.kind == "gradient" for tensor in tensors], bool)
        formats = [FORMATS[tensor.dtype] for tensor in tensors]
        self._is_narrow = np.array([float_format.bits <= _NARROW_BITS for float_format in formats], bool)
        self._log2_max = np.array([math.log2(float_format.max) for float_format in formats])
        self._headroom = np.full((RECENT, len(self._layers)), np.nan)
        for number, layer in enumerate(self._layers):
            if layer.id in old:
                self._headroom[:, number] = old[layer.id]
        self._now = np.full(len(self._layers), np.nan)
        self._bad_outputs = self._bad_gradients = np.zeros(len(self._layers), np.int64)
        self._subnormal_share = np.full(len(self._layers), np.nan)

    def _take_sample(self, fresh: FreshSample) -> None:
        scalars, columns = fresh.scalars, fresh.columns
        layer_of = self._layer_of[columns]
        is_known = layer_of >= 0
        is_output, is_gradient = self._is_output[columns] & is_known, self._is_gradient[columns] & is_known
        is_narrow = self._is_narrow[columns]
        counts = {name: scalars[name].astype(np.int64) for name in ("count", "zeros", "subnormals")}
        infinities = scalars["positive_infinities"] + scalars["negative_infinities"]
        bad = (infinities + scalars["nans"]).astype(np.int64)
        finite = counts["count"] - bad
        layers = len(self._layers)
        self._bad_outputs = _sums(layer_of, bad, is_output, layers)
        self._bad_gradients = _sums(layer_of, bad, is_gradient, layers)
        small = is_gradient & is_narrow
        nonzero = _sums(layer_of, finite - counts["zeros"], small, layers)
        subnormals = _sums(layer_of, counts["subnormals"], small, layers)
        self._subnormal_share = np.divide(subnormals, nonzero, out=np.full(layers, np.nan), where=nonzero > 0)
        largest = np.maximum(np.abs(scalars["min"]), np.abs(scalars["max"])).astype(np.float64)
        is_measured = is_output & is_narrow & (finite > 0) & (largest > 0)
        headroom = np.full(layers, np.inf)
        bits = self._log2_max[columns][is_measured] - np.log2(largest[is_measured])
        np.minimum.at(headroom, layer_of[is_measured], bits)
        headroom[np.isinf(headroom)] = np.nan
        self._now = headroom
        self._headroom = np.roll(self._headroom, -1, axis=0)
        self._steps = np.roll(self._steps, -1)
        self._headroom[-1], self._steps[-1] = np.where(self._bad_outputs > 0, -np.inf, headroom), fresh.sample.step

    def _ranks(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return what layers are sorted by: how bad, then where or by how much, then by subnormal gradients."""
        order = np.arange(len(self._layers), dtype=float)
        level = np.where(self._bad_outputs > 0, _BAD_OUTPUT, np.where(self._bad_gradients > 0, _BAD_GRADIENT, _GOOD))
        headroom = np.where(np.isnan(self._now), np.inf, self._now)
        second = np.choose(level, [order, -order, headroom])
        return level.astype(float), second, -np.nan_to_num(self._subnormal_share)

    def _row(self, row: int, slope: float | None, end: int | None, rank: tuple[float, ...]) -> LayerNow:
        layer, now, share = self._layers[row], float(self._now[row]), float(self._subnormal_share[row])
        headroom = None if math.isnan(now) else now
        seen = ~np.isnan(self._steps)
        return LayerNow(
            id=layer.id,
            name=printable(layer.id),
            type=printable(layer.type),
            compute_dtype=printable(layer.compute_dtype),
            severity=self._severity(row, headroom),
            headroom_bits=headroom,
            history=tuple(None if math.isnan(value) else float(value) for value in self._headroom[seen, row]),
            bits_per_1000_steps=slope,
            overflow_step=None if self._bad_outputs[row] else end,
            subnormal_share=None if math.isnan(share) else share,
            bad=int(self._bad_outputs[row] + self._bad_gradients[row]),
            rank=rank,
        )

    def _severity(self, row: int, headroom: float | None) -> Severity | None:
        limits = self._thresholds
        if self._bad_outputs[row] or (headroom is not None and headroom < limits.headroom_error_bits):
            return "error"
        # A gradient that is not finite costs a step, and often only shows that the loss scale was raised.
        if self._bad_gradients[row] or (headroom is not None and headroom < limits.headroom_warning_bits):
            return "warning"
        return None


def _sums(
    layer_of: NDArray[np.intp], values: NDArray[np.int64], chosen: NDArray[np.bool_], layers: int
) -> NDArray[np.int64]:
    """Return the sum of the chosen tensors' `values` by layer."""
    sums = np.zeros(layers, np.int64)
    np.add.at(sums, layer_of[chosen], values[chosen])
    return sums


def _trends(steps: NDArray[np.float64], headroom: NDArray[np.float64]) -> tuple[list[float | None], list[int | None]]:
    """Return, for each column of headroom [samples, layers], bits in 1,000 steps and the step where none is left."""
    slopes: list[float | None] = []
    ends: list[int | None] = []
    for column in headroom.T:
        slope, end = _trend(steps, column)
        slopes.append(slope)
        ends.append(end)
    return slopes, ends


def _trend(steps: NDArray[np.float64], headroom: NDArray[np.float64]) -> tuple[float | None, int | None]:
    known = np.isfinite(steps) & np.isfinite(headroom)
    x, y = steps[known], headroom[known]
    if len(x) < _LEAST_SAMPLES or x[-1] == x[0]:
        return None, None
    along, up = x - x.mean(), y - y.mean()
    spread = float(up @ up)
    slope = float(along @ up) / float(along @ along)
    if not spread or slope * float(along @ up) / spread < _LEAST_FIT:
        return None, None
    span = float(x[-1] - x[0])
    left = float(y[-1]) / -slope if slope < 0 else math.inf
    return 1000 * slope, int(x[-1] + left) if 0 < left < _FORESIGHT * span else None
