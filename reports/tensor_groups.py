"""The recorded tensors of a run by layer, kind and format, as columns: what a page of 1,000 layers is made from.

Whole columns are computed at once; asking for each layer's tensors in turn would take as long as all rules together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from precscope.advice import Evidence
    from precscope.records import TensorKind

    Column = NDArray[np.int64]

__all__ = ["KINDS", "History", "TensorGroups", "history", "tensor_groups"]

KINDS: tuple[TensorKind, ...] = ("activation", "gradient", "weight", "weight_gradient")
_GRADIENTS = ("gradient", "weight_gradient")
_COUNTS = ("count", "zeros", "nans", "updates", "lost_updates")


@dataclass(frozen=True)
class TensorGroups:
    """One element a group: the tensors that a layer has of one kind in one format. In the order of the layers.

    `nonzero`, `subnormals`, `absmax`, `smallest` and `histograms` are of gradients at the run's last loss scale only,
    which moves them; all else is of all samples.

    Attributes:
        members: int64 [tensors], the group of each tensor of the run.
        layer: Index of the layer, in the order of `Evidence.layers`.
        kind: Index into KINDS.
        dtype: Names of the formats.
        totals: Sums by field of SCALAR_DTYPE, of "count", "zeros", "nans", "updates" and "lost_updates".
        infinities: Infinities of both signs.
        nonzero: Finite values that are not zero.
        subnormals: Those below the smallest normal number of the group's own format.
        absmax: float64, the largest finite magnitude; NaN without finite values.
        smallest: float64, the smallest non-zero magnitude; NaN without one.
        is_sampled: bool, whether the histogram looked at some elements only.
        histograms: uint64 [groups, HISTOGRAM_BINS], the sum of at most 32 samples.
    """

    members: Column
    layer: Column
    kind: Column
    dtype: tuple[str, ...]
    totals: dict[str, Column]
    infinities: Column
    nonzero: Column
    subnormals: Column
    absmax: NDArray[np.float64]
    smallest: NDArray[np.float64]
    is_sampled: NDArray[np.bool_]
    histograms: NDArray[np.uint64]


@dataclass(frozen=True)
class History:
    """How the groups went over the run, in stretches of consecutive samples, each as its most extreme sample was.

    Attributes:
        first_step: First sampled step of each stretch, int64 [stretches].
        last_step: Last one.
        absmax: float64 [groups, stretches], the largest finite magnitude; NaN without finite values.
        smallest: float64 [groups, stretches], the smallest non-zero magnitude; NaN without one.
        subnormal_share: float64 [groups, stretches], of the non-zero values; NaN without one.
        has_nonfinite: bool [groups, stretches], whether there were infinities or NaN.
    """

    first_step: Column
    last_step: Column
    absmax: NDArray[np.float64]
    smallest: NDArray[np.float64]
    subnormal_share: NDArray[np.float64]
    has_nonfinite: NDArray[np.bool_]


def tensor_groups(evidence: Evidence) -> TensorGroups:
    """Return the run's tensors by layer, kind and format."""
    places = {layer.id: place for place, layer in enumerate(evidence.layers)}
    keys = [(places[tensor.layer], KINDS.index(tensor.kind), tensor.dtype) for tensor in evidence.run.tensors]
    groups = sorted(set(keys))
    numbers = {key: number for number, key in enumerate(groups)}
    members = np.array([numbers[key] for key in keys], np.int64)
    kind = np.array([key[1] for key in groups], np.int64)
    is_gradient = np.isin(kind, [KINDS.index(name) for name in _GRADIENTS])

    def summed(counts: Column) -> Column:
        return _gathered(counts.sum(axis=0), members, len(groups), np.add, 0)

    def shown(of: Callable[[Any], Any]) -> Any:
        """Gradients at the current loss scale, all else over the whole run."""
        here, current = of(slice(None)), of(evidence.at_current_scale)
        mask = is_gradient if here.ndim == 1 else is_gradient[:, np.newaxis]
        return np.where(mask, current, here)

    nonfinite, totals = summed(evidence.nonfinite), {name: summed(evidence.counts(name)) for name in _COUNTS}
    smallest = _smallest(evidence)
    return TensorGroups(
        members=members,
        layer=np.array([key[0] for key in groups], np.int64),
        kind=kind,
        dtype=tuple(key[2] for key in groups),
        totals=totals,
        infinities=nonfinite - totals["nans"],
        nonzero=shown(lambda samples: summed(evidence.nonzero[samples])),
        subnormals=shown(lambda samples: summed(evidence.counts("subnormals")[samples])),
        absmax=shown(lambda samples: _extreme(evidence.absmax[samples], members, len(groups), np.fmax)),
        smallest=shown(lambda samples: _extreme(smallest[samples], members, len(groups), np.fmin)),
        is_sampled=summed(evidence.counts("histogram_count")) < totals["count"],
        histograms=shown(lambda samples: _histograms(evidence, samples, members, len(groups))),
    )


def history(evidence: Evidence, groups: TensorGroups, most: int = 64) -> History:
    """Return how the groups went over the run, in at most `most` stretches."""
    samples = len(evidence.samples)
    edges = np.unique(np.linspace(0, samples, min(most, samples) + 1).astype(np.int64))
    starts, steps = edges[:-1], np.array([sample.step for sample in evidence.samples], np.int64)

    def over_time(array: NDArray[Any], merge: np.ufunc, nothing: float) -> NDArray[Any]:
        by_stretch = merge.reduceat(array, starts, axis=0) if len(starts) else array[:0]
        shape = (len(groups.layer), len(starts))
        merged = np.full(shape, nothing, by_stretch.dtype)
        merge.at(merged, groups.members, by_stretch.T)
        return merged

    nonzero = over_time(evidence.nonzero, np.add, 0)
    subnormals = over_time(evidence.counts("subnormals"), np.add, 0)
    return History(
        first_step=steps[starts],
        last_step=steps[edges[1:] - 1],
        absmax=over_time(evidence.absmax, np.fmax, np.nan),
        smallest=over_time(_smallest(evidence), np.fmin, np.nan),
        subnormal_share=np.divide(subnormals, nonzero, out=np.full(nonzero.shape, np.nan), where=nonzero > 0),
        has_nonfinite=over_time(evidence.nonfinite, np.add, 0) > 0,
    )


def _smallest(evidence: Evidence) -> NDArray[np.float64]:
    return np.where(evidence.nonzero > 0, evidence.values("smallest_nonzero"), np.nan)


def _extreme(values: NDArray[np.float64], members: Column, groups: int, merge: np.ufunc) -> NDArray[np.float64]:
    merged: NDArray[np.float64] = merge.reduce(values, axis=0, initial=np.nan)
    return _gathered(merged, members, groups, merge, np.nan)


def _histograms(evidence: Evidence, samples: Any, members: Column, groups: int) -> NDArray[np.uint64]:
    indices = evidence.all_samples[samples]
    return _gathered(evidence.histograms(indices), members, groups, np.add, 0)


def _gathered(values: NDArray[Any], members: Column, groups: int, merge: np.ufunc, nothing: float) -> NDArray[Any]:
    """Return [groups, ...]: `values` [tensors, ...] merged by the group of each tensor."""
    merged = np.full((groups, *values.shape[1:]), nothing, values.dtype)
    merge.at(merged, members, values)
    return merged
