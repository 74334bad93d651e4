"""What if: from exponent histograms, what another format or another loss scale would flush, blur or overflow.

A loss scale multiplies every gradient, so on the exponent axis it only moves the histogram against a format's limits.
A histogram has one bin an octave, so a limit at the edge of an octave gives an exact count and a limit inside one
gives a bracket: at least `lower`, at most `upper`. Per class of values, with the ratio r of the wanted loss scale to
the recorded one:

- *flushed*: r*|x| <= half the smallest subnormal, which rounds to zero. (Values above that half round up to the
  smallest subnormal: the octave below it is not flushed.) The limit is the lower edge of an octave and itself
  flushes, so `lower` leaves out, and `upper` holds, the octave that begins there.
- *subnormal*: not flushed, and r*|x| below the smallest normal before rounding. The two together are exact.
- *overflow*: r*|x| rounds beyond the largest finite number. That limit lies inside the top octave.

The exact extremes of the tensor tighten the brackets: nothing overflows if the largest magnitude does not, and if it
does, at least one value does. (Of a sampled histogram only the first holds: it may have missed that value. All counts
are then of the values that it looked at.) The extremes are also all that is known about the end bins, which hold
everything smaller and larger than the histogram's window.
Where r is no power of two, nothing is rounded: the limits move inside octaves and the brackets widen by one bin.
Zeros, infinities and NaN are not in a histogram: what was zero, or infinite, already stays so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from precscope.statistics import BIN_EXPONENTS, HISTOGRAM_BINS

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from precscope.formats import FloatFormat

__all__ = ["Bracket", "WhatIf", "what_if"]

# Bin i holds magnitudes in [_EDGES[i], _EDGES[i + 1]); the end bins are open.
_EDGES = np.concatenate([[0.0], np.exp2(np.array(BIN_EXPONENTS[1:], np.float64)), [np.inf]])


@dataclass(frozen=True)
class Bracket:
    """How many values: at least `lower`, at most `upper`, each int64 [...], one element a tensor."""

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]

    @property
    def exact(self) -> NDArray[np.bool_]:
        """Where the two agree."""
        return np.equal(self.lower, self.upper)


@dataclass(frozen=True)
class WhatIf:
    """What a format would do to recorded values at another loss scale.

    Attributes:
        format: The format.
        scale_ratio: Wanted loss scale divided by the recorded one.
        nonzero: int64 [...], finite non-zero values of each tensor: what the shares are of.
        flushed: Values that would become zero.
        subnormal: Values that would be subnormal.
        overflow: Values that would become infinite (NaN in a format without infinities).
    """

    format: FloatFormat
    scale_ratio: float
    nonzero: NDArray[np.int64]
    flushed: Bracket
    subnormal: Bracket
    overflow: Bracket


def what_if(
    histogram: ArrayLike,
    float_format: FloatFormat,
    *,
    scale_ratio: float = 1.0,
    absmax: ArrayLike | None = None,
    smallest_nonzero: ArrayLike | None = None,
    is_exact: ArrayLike = True,
) -> WhatIf:
    """Return what `float_format` would do to the tensors that the histograms describe.

    Args:
        histogram: Counts [..., HISTOGRAM_BINS], as in `precscope.statistics`.
        float_format: The format to try.
        scale_ratio: Wanted loss scale divided by the recorded one.
        absmax: Exact largest finite magnitude [...] of each tensor; NaN where unknown.
        smallest_nonzero: Exact smallest non-zero magnitude [...] of each tensor; NaN where unknown.
        is_exact: Whether the histogram looked at every value [...]; False where it is sampled.

    Raises:
        ValueError: The histogram has another number of bins, or the ratio is not positive and finite.
    """
    counts = np.asarray(histogram).astype(np.int64)
    if counts.ndim == 0 or counts.shape[-1] != HISTOGRAM_BINS:
        raise ValueError(f"Expected histograms of shape [..., {HISTOGRAM_BINS}]. Received shape {counts.shape}.")
    if not (math.isfinite(scale_ratio) and scale_ratio > 0):
        raise ValueError(f"Expected a positive, finite scale_ratio. Received {scale_ratio!r}.")
    exact = np.broadcast_to(np.asarray(is_exact, bool), counts.shape[:-1])
    tensors = _Tensors(counts, _known(absmax, counts), _known(smallest_nonzero, counts), exact)
    flushed = _below(tensors, float_format.flush_limit / scale_ratio, inclusive=True)
    small = _below(tensors, float_format.smallest_normal / scale_ratio, inclusive=False)
    fitting = _below(tensors, float_format.overflow_limit / scale_ratio, inclusive=not float_format.has_infinity)
    nonzero = counts.sum(axis=-1)
    return WhatIf(
        format=float_format,
        scale_ratio=scale_ratio,
        nonzero=nonzero,
        flushed=flushed,
        subnormal=_difference(small, flushed),
        overflow=Bracket(nonzero - fitting.upper, nonzero - fitting.lower),
    )


@dataclass(frozen=True)
class _Tensors:
    """Histograms int64 [..., bins] and the exact extremes float64 [...], NaN where unknown."""

    counts: NDArray[np.int64]
    largest: NDArray[np.float64]
    smallest: NDArray[np.float64]
    exact: NDArray[np.bool_]


def _known(extreme: ArrayLike | None, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.broadcast_to(np.asarray(np.nan if extreme is None else extreme, np.float64), counts.shape[:-1])


def _below(tensors: _Tensors, limit: float, *, inclusive: bool) -> Bracket:
    """Count magnitudes < `limit`, or <= `limit` where `inclusive`."""
    surely = int(np.searchsorted(_EDGES[1:], limit, side="right"))  # bins that end at or before the limit
    perhaps = int(np.searchsorted(_EDGES[:-1], limit, side="right" if inclusive else "left"))  # that begin before it
    lower = tensors.counts[..., :surely].sum(axis=-1)
    upper = tensors.counts[..., :perhaps].sum(axis=-1)
    total = tensors.counts.sum(axis=-1)
    inside, beyond = (np.less_equal, np.greater) if inclusive else (np.less, np.greater_equal)
    # Comparisons with NaN (unknown) are False, which leaves a count as it is.
    one = np.minimum(total, tensors.exact)  # the extreme itself, if it was counted
    lower = np.where(inside(tensors.smallest, limit), np.maximum(lower, one), lower)
    lower = np.where(inside(tensors.largest, limit), total, lower)
    upper = np.where(beyond(tensors.largest, limit), np.minimum(upper, total - one), upper)
    upper = np.where(beyond(tensors.smallest, limit), 0, upper)
    return Bracket(lower, upper)


def _difference(whole: Bracket, part: Bracket) -> Bracket:
    """Return the bracket of `whole - part`, where the part lies inside the whole."""
    return Bracket(np.maximum(whole.lower - part.upper, 0), np.maximum(whole.upper - part.lower, 0))
