"""Formats against ml_dtypes.finfo and against what a cast to each of them really does."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from precscope.formats import FORMATS, get_format


def dtype_of(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def cast(value: float, name: str) -> float:
    """Round `value` once: float64 to the format, through NumPy or ml_dtypes."""
    with np.errstate(over="ignore"):
        return float(np.array([value], np.float64).astype(dtype_of(name))[0])


@pytest.mark.parametrize("name", FORMATS)
def test_properties_agree_with_ml_dtypes(name):
    info, ours = ml_dtypes.finfo(dtype_of(name)), FORMATS[name]
    assert ours.bits == info.bits
    assert ours.mantissa_bits == info.nmant
    assert ours.max == float(info.max)
    assert ours.smallest_normal == float(info.smallest_normal)
    assert ours.smallest_subnormal == float(info.smallest_subnormal)
    assert ours.epsilon == float(info.eps)
    assert ours.exponent_min == info.minexp
    assert math.floor(math.log2(ours.max)) == ours.exponent_max
    assert ours.has_infinity == math.isinf(float(np.array(np.inf).astype(dtype_of(name))))


def test_values_of_the_standards():
    # IEEE 754-2019 table 3.5; arXiv 2209.05433 table 1.
    assert (FORMATS["float16"].max, FORMATS["float16"].smallest_subnormal) == (65504.0, 2.0**-24)
    assert FORMATS["float8_e4m3fn"].max == 448.0
    assert FORMATS["float8_e4m3fn"].smallest_subnormal == 2.0**-9
    assert FORMATS["float8_e5m2"].max == 57344.0
    assert [FORMATS[name].largest_exact_integer for name in ("float16", "bfloat16")] == [2048, 256]


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "float32"])
def test_limits_are_where_a_cast_flushes_and_overflows(name):
    ours = FORMATS[name]
    just = 1 + 2.0**-13  # coarse enough for float32's subnormals, through which ml_dtypes rounds to bfloat16
    assert cast(ours.flush_limit, name) == 0.0
    assert cast(ours.flush_limit * just, name) == ours.smallest_subnormal
    assert cast(ours.overflow_limit / just, name) == ours.max
    assert not math.isfinite(cast(ours.overflow_limit * just, name))
    assert math.isfinite(cast(ours.overflow_limit, name)) == (not ours.has_infinity)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_the_next_integer_is_not_exact(name):
    largest = FORMATS[name].largest_exact_integer
    assert cast(largest, name) == largest
    assert cast(largest + 1, name) != largest + 1


def test_headroom_bits():
    float16 = FORMATS["float16"]
    assert float16.headroom_bits(float16.max) == 0.0
    # The difference of two logarithms, each rounded to float64.
    assert float16.headroom_bits(float16.max / 8) == pytest.approx(3.0, abs=1e-14)
    assert float16.headroom_bits(float16.max * 2) == pytest.approx(-1.0, abs=1e-14)
    assert float16.headroom_bits(0.0) is None
    assert float16.headroom_bits(None) is None


def test_an_unknown_format_names_those_that_exist():
    with pytest.raises(ValueError, match=r"Unknown float format .float64.\. Expected one of: float16, bfloat16"):
        get_format("float64")
