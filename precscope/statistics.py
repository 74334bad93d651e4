"""What PrecScope says about one tensor, and the NumPy code that defines it.

The TensorFlow version in `precscope.probes.statistic` must agree with `describe` to the last count; one parametrized
test runs both.

Definitions: a *subnormal* is a non-zero value below the smallest normal of the tensor's own format. Zeros of both
signs are zeros, never underflow. Infinities (by sign) and NaN are counted apart and take no part in `min`, `max`,
`smallest_nonzero`, `mean` and `rms`, which are over finite values and None where there is none.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np

from precscope.formats import FORMATS, FloatFormat, get_format

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BIN_EXPONENTS",
    "BLOCK",
    "EXPONENT_MAX",
    "EXPONENT_MIN",
    "HISTOGRAM_BINS",
    "HISTOGRAM_LIMIT",
    "TensorStatistics",
    "describe",
    "histogram_stride",
    "merge",
]

#: The exponent histogram has one bin an octave: bin i counts |x| in [2**e, 2**(e+1)) with e = EXPONENT_MIN + i.
#: The first bin also takes everything smaller, the last everything larger (`absmax` tells how large). The window
#: holds float16 (-24 to 15) and what float16 would flush at any loss scale up to 2**20.
#:
#: Of a tensor with more than HISTOGRAM_LIMIT elements the histogram looks at evenly spaced blocks of BLOCK elements
#: (every k-th, `histogram_stride` gives k): it is *sampled* there, all other counts are exact, and `histogram_count`
#: tells how many elements it looked at.
HISTOGRAM_LIMIT, BLOCK = 2**16, 128
EXPONENT_MIN, EXPONENT_MAX = -46, 17
HISTOGRAM_BINS = EXPONENT_MAX - EXPONENT_MIN + 1
BIN_EXPONENTS: tuple[int, ...] = tuple(range(EXPONENT_MIN, EXPONENT_MAX + 1))


def _empty_histogram() -> NDArray[np.uint64]:
    return np.zeros(HISTOGRAM_BINS, np.uint64)


@dataclass(frozen=True)
class TensorStatistics:
    """Exact counts and extremes of one tensor, or of several that were merged.

    Attributes:
        format: Name of the tensor's float format, a key of `precscope.formats.FORMATS`.
        count: Number of elements.
        zeros: Exact zeros of either sign.
        subnormals: Non-zero values below the smallest normal of `format`.
        positive_infinities: Values equal to +inf.
        negative_infinities: Values equal to -inf.
        nans: NaN values.
        min: Smallest finite value, or None.
        max: Largest finite value, or None.
        smallest_nonzero: Smallest non-zero finite magnitude, or None.
        mean: Mean of the finite values (summed in float32 by the probes), or None, also where the sum left float32.
        rms: Root of the mean square of the finite values, or None, also where the squares left float32's range.
        histogram_count: Number of elements that the histogram looked at, zeros and non-finite values among them.
        histogram: uint64 [HISTOGRAM_BINS], finite non-zero values by exponent, of those elements.
    """

    format: str
    count: int
    zeros: int = 0
    subnormals: int = 0
    positive_infinities: int = 0
    negative_infinities: int = 0
    nans: int = 0
    min: float | None = None
    max: float | None = None
    smallest_nonzero: float | None = None
    mean: float | None = None
    rms: float | None = None
    histogram_count: int = 0
    histogram: NDArray[np.uint64] = field(default_factory=_empty_histogram, repr=False)

    @property
    def float_format(self) -> FloatFormat:
        """The format itself."""
        return FORMATS[self.format]

    @property
    def histogram_is_exact(self) -> bool:
        """Whether the histogram looked at every element."""
        return self.histogram_count == self.count

    @property
    def infinities(self) -> int:
        """Infinities of either sign."""
        return self.positive_infinities + self.negative_infinities

    @property
    def nonfinite(self) -> int:
        """Infinities and NaN."""
        return self.infinities + self.nans

    @property
    def finite(self) -> int:
        """Finite values, zeros among them."""
        return self.count - self.nonfinite

    @property
    def nonzero(self) -> int:
        """Finite values that are not zero: what the histogram counts."""
        return self.finite - self.zeros

    @property
    def absmax(self) -> float | None:
        """Largest finite magnitude, or None."""
        if self.min is None or self.max is None:
            return None
        return max(abs(self.min), abs(self.max))

    @property
    def headroom_bits(self) -> float | None:
        """log2(format max / absmax) in bits; None where there is no finite non-zero value."""
        return self.float_format.headroom_bits(self.absmax)

    def __eq__(self, other: object) -> bool:
        """Compare all fields, the histogram element by element."""
        if not isinstance(other, TensorStatistics):
            return NotImplemented
        names = [item.name for item in fields(self) if item.name != "histogram"]
        same = all(getattr(self, name) == getattr(other, name) for name in names)
        return same and bool(np.array_equal(self.histogram, other.histogram))

    __hash__ = None  # type: ignore[assignment]  # an array is not hashable


def describe(array: NDArray[np.generic]) -> TensorStatistics:
    """Return the statistics of `array`, any shape, of a dtype named in `FORMATS`: the reference implementation.

    Raises:
        ValueError: The dtype is none of the formats that PrecScope knows.
    """
    float_format = get_format(array.dtype.name)
    # Every format fits into float64 without rounding, so comparisons below are exact.
    values = array.reshape(-1).astype(np.float64)
    finite = values[np.isfinite(values)]
    magnitudes = np.abs(finite[finite != 0])
    looked_at = _histogram_subset(values)
    return TensorStatistics(
        format=float_format.name,
        count=values.size,
        zeros=finite.size - magnitudes.size,
        subnormals=int(np.count_nonzero(magnitudes < float_format.smallest_normal)),
        positive_infinities=int(np.count_nonzero(values == np.inf)),
        negative_infinities=int(np.count_nonzero(values == -np.inf)),
        nans=int(np.count_nonzero(np.isnan(values))),
        min=float(finite.min()) if finite.size else None,
        max=float(finite.max()) if finite.size else None,
        smallest_nonzero=float(magnitudes.min()) if magnitudes.size else None,
        mean=float(finite.mean()) if finite.size else None,
        rms=float(np.sqrt(np.mean(np.square(finite)))) if finite.size else None,
        histogram_count=looked_at.size,
        histogram=_exponent_histogram(looked_at),
    )


def histogram_stride(count: int) -> int:
    """Return k such that the histogram of `count` elements looks at every k-th block of BLOCK elements."""
    blocks = -(-count // BLOCK)
    return max(1, -(-blocks // (HISTOGRAM_LIMIT // BLOCK)))


def _histogram_subset(values: NDArray[np.float64]) -> NDArray[np.float64]:
    stride = histogram_stride(values.size)
    if stride == 1:
        return values
    indices = np.arange(values.size)
    chosen: NDArray[np.float64] = values[indices // BLOCK % stride == 0]
    return chosen


def _exponent_histogram(values: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Count the finite non-zero `values` by exponent: uint64 [HISTOGRAM_BINS]."""
    magnitudes = np.abs(values[np.isfinite(values) & (values != 0)])
    exponents = np.frexp(magnitudes)[1] - 1  # frexp's mantissa lies in [0.5, 1)
    bins = np.clip(exponents, EXPONENT_MIN, EXPONENT_MAX) - EXPONENT_MIN
    return np.bincount(bins, minlength=HISTOGRAM_BINS).astype(np.uint64)


def merge(first: TensorStatistics, second: TensorStatistics) -> TensorStatistics:
    """Return the statistics of both tensors together; counts and extremes stay exact.

    Raises:
        ValueError: The two have different formats.
    """
    if first.format != second.format:
        raise ValueError(f"Cannot merge statistics of {first.format} with statistics of {second.format}.")
    both = (first, second)
    return TensorStatistics(
        format=first.format,
        count=first.count + second.count,
        zeros=first.zeros + second.zeros,
        subnormals=first.subnormals + second.subnormals,
        positive_infinities=first.positive_infinities + second.positive_infinities,
        negative_infinities=first.negative_infinities + second.negative_infinities,
        nans=first.nans + second.nans,
        min=min((s.min for s in both if s.min is not None), default=None),
        max=max((s.max for s in both if s.max is not None), default=None),
        smallest_nonzero=min((s.smallest_nonzero for s in both if s.smallest_nonzero is not None), default=None),
        mean=_pooled(both, [s.mean for s in both]),
        rms=_pooled_rms(both),
        histogram_count=first.histogram_count + second.histogram_count,
        histogram=first.histogram + second.histogram,
    )


def _pooled(parts: tuple[TensorStatistics, ...], values: list[float | None]) -> float | None:
    """Return the mean of `values` weighted by finite elements; None where a part with elements lacks its value."""
    weighted = [(part.finite, value) for part, value in zip(parts, values, strict=True) if part.finite]
    if not weighted or any(value is None for _, value in weighted):
        return None
    total = sum(weight for weight, _ in weighted)
    return sum(weight * value for weight, value in weighted if value is not None) / total


def _pooled_rms(parts: tuple[TensorStatistics, ...]) -> float | None:
    square = _pooled(parts, [None if part.rms is None else part.rms**2 for part in parts])
    return None if square is None else float(np.sqrt(square))
