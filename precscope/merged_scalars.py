"""Statistics of one tensor from several places (replicas, workers) put together: counts added, extremes over all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from precscope.records import SCALAR_DTYPE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["ScalarSum", "merge_scalars"]

_COUNTS = tuple(name for name in SCALAR_DTYPE.names or () if SCALAR_DTYPE[name].kind == "u")


class ScalarSum:
    """Adds up arrays of scalars without keeping them.

    Each field is an array of its own: NumPy computes with the fields of records several times more slowly.

    Args:
        shape: Shape of the result; arrays are added at a part of it.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._counts = {name: np.zeros(shape, np.uint64) for name in _COUNTS}
        self._min = np.full(shape, np.inf, np.float32)
        self._max = np.full(shape, -np.inf, np.float32)
        self._smallest = np.full(shape, np.inf, np.float32)
        self._sum = np.zeros(shape, np.float64)
        self._squares = np.zeros(shape, np.float64)

    def add(self, scalars: NDArray[np.void], at: Any = ...) -> None:
        """Add SCALAR_DTYPE `scalars` to the part `at` of the result; no element may be named twice by `at`."""
        counts = {name: scalars[name] for name in _COUNTS}
        for name, values in counts.items():
            self._counts[name][at] += values
        finite = _finite(counts)
        is_finite, is_nonzero = finite > 0, finite > counts["zeros"]
        self._min[at] = np.minimum(self._min[at], np.where(is_finite, scalars["min"], np.inf))
        self._max[at] = np.maximum(self._max[at], np.where(is_finite, scalars["max"], -np.inf))
        self._smallest[at] = np.minimum(self._smallest[at], np.where(is_nonzero, scalars["smallest_nonzero"], np.inf))
        # Where nothing is finite, mean and rms hold no meaning, and an infinite one times 0 would be NaN.
        self._sum[at] += np.where(is_finite, scalars["mean"].astype(np.float64) * finite, 0)
        self._squares[at] += np.where(is_finite, scalars["rms"].astype(np.float64) ** 2 * finite, 0)

    def result(self) -> NDArray[np.void]:
        """Return SCALAR_DTYPE of the whole; a number without meaning is 0."""
        merged = np.zeros(self._sum.shape, SCALAR_DTYPE)
        for name, values in self._counts.items():
            merged[name] = values
        finite = _finite(self._counts)
        is_finite, is_nonzero = finite > 0, finite > self._counts["zeros"]
        merged["min"], merged["max"] = (np.where(is_finite, values, 0) for values in (self._min, self._max))
        merged["smallest_nonzero"] = np.where(is_nonzero, self._smallest, 0)
        divisor = np.maximum(finite, 1).astype(np.float64)
        with np.errstate(over="ignore"):
            merged["mean"], merged["rms"] = self._sum / divisor, np.sqrt(self._squares / divisor)
        return merged


def merge_scalars(parts: Sequence[NDArray[np.void]]) -> NDArray[np.void]:
    """Return the SCALAR_DTYPE of all `parts`, arrays of one shape, taken together element by element."""
    if len(parts) == 1:
        return parts[0]
    merged = ScalarSum(parts[0].shape)
    for part in parts:
        merged.add(part)
    return merged.result()


def _finite(counts: dict[str, NDArray[np.uint64]]) -> NDArray[np.uint64]:
    return counts["count"] - counts["positive_infinities"] - counts["negative_infinities"] - counts["nans"]
