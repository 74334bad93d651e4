"""Floating-point formats as data: the only place that knows their limits.

Sources: IEEE 754-2019 (float16 = binary16, float32 = binary32); the bfloat16 definition of the TensorFlow white paper
(binary32 cut to 16 bits); "FP8 Formats for Deep Learning" (arXiv 2209.05433) for e4m3 and e5m2. Checked against
`ml_dtypes.finfo` in the tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["FORMATS", "FloatFormat", "get_format"]


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format.

    Attributes:
        name: The name that NumPy, ml_dtypes and TensorFlow use for the dtype.
        bits: Storage size in bits.
        exponent_min: Exponent of the smallest normal number, which is `2**exponent_min`.
        exponent_max: Exponent of the largest finite number, which lies in `[2**exponent_max, 2**(exponent_max+1))`.
        mantissa_bits: Explicitly stored mantissa bits; the precision is one more.
        max: The largest finite number.
        has_infinity: False where the format has only NaN (float8_e4m3fn).
    """

    name: str
    bits: int
    exponent_min: int
    exponent_max: int
    mantissa_bits: int
    max: float
    has_infinity: bool = True

    @property
    def smallest_normal(self) -> float:
        """The smallest positive number with full precision."""
        return math.ldexp(1.0, self.exponent_min)

    @property
    def subnormal_exponent_min(self) -> int:
        """Exponent of the smallest positive (subnormal) number."""
        return self.exponent_min - self.mantissa_bits

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive number."""
        return math.ldexp(1.0, self.subnormal_exponent_min)

    @property
    def flush_limit(self) -> float:
        """Magnitudes up to this round to zero (half the smallest subnormal; the tie goes to even, which is zero)."""
        return self.smallest_subnormal / 2

    @property
    def overflow_limit(self) -> float:
        """Magnitudes from this on round beyond `max` (half an ulp above it; the tie goes to even, which is beyond).

        For float8_e4m3fn the tie goes to even too, but even is `max` itself, so the limit is exclusive there.
        """
        return self.max + math.ldexp(1.0, self.exponent_max - self.mantissa_bits) / 2

    @property
    def epsilon(self) -> float:
        """The distance from 1 to the next larger number (one ulp at 1)."""
        return math.ldexp(1.0, -self.mantissa_bits)

    @property
    def largest_exact_integer(self) -> int:
        """All integers up to this magnitude are exact; the next one is not."""
        return 1 << (self.mantissa_bits + 1)

    def headroom_bits(self, absmax: float | None) -> float | None:
        """Return how many bits `absmax` may still grow before it leaves the format: `log2(max / absmax)`.

        None where there is no finite non-zero value. Negative where `absmax` already lies beyond `max`.
        """
        if absmax is None or absmax == 0.0:
            return None
        return math.log2(self.max) - math.log2(absmax)


_IEEE = {"float16": (16, 5, 10), "bfloat16": (16, 8, 7), "float32": (32, 8, 23), "float8_e5m2": (8, 5, 2)}


def _ieee(name: str, bits: int, exponent_bits: int, mantissa_bits: int) -> FloatFormat:
    """Build a format that follows IEEE 754: the top exponent is kept for infinities and NaN."""
    bias = (1 << (exponent_bits - 1)) - 1
    largest = math.ldexp(2.0 - math.ldexp(1.0, -mantissa_bits), bias)
    return FloatFormat(name, bits, 1 - bias, bias, mantissa_bits, largest)


#: Every format that PrecScope knows, by name, in the order in which reports show them.
FORMATS: dict[str, FloatFormat] = {name: _ieee(name, *fields) for name, fields in _IEEE.items()}
# e4m3fn keeps the top exponent for numbers: only S.1111.111 is NaN, so the largest is 1.75 * 2**8 (arXiv 2209.05433).
FORMATS["float8_e4m3fn"] = FloatFormat("float8_e4m3fn", 8, -6, 8, 3, 1.75 * 2.0**8, has_infinity=False)


def get_format(name: str) -> FloatFormat:
    """Return the format called `name`.

    Raises:
        ValueError: There is no such format.
    """
    try:
        return FORMATS[name]
    except KeyError:
        raise ValueError(f"Unknown float format {name!r}. Expected one of: {', '.join(FORMATS)}.") from None
