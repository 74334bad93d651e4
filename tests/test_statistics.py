"""`describe` against NumPy and ml_dtypes, count by count, without tolerance."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from precscope.formats import FORMATS
from precscope.statistics import (
    BIN_EXPONENTS,
    BLOCK,
    EXPONENT_MAX,
    EXPONENT_MIN,
    HISTOGRAM_BINS,
    HISTOGRAM_LIMIT,
    describe,
    histogram_stride,
    merge,
)


def dtype_of(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def every_value(name: str) -> np.ndarray:
    """All bit patterns of an 8 or 16-bit format, or a spread of float32's that holds every exponent and special."""
    dtype = dtype_of(name)
    if dtype.itemsize <= 2:
        return np.arange(2 ** (8 * dtype.itemsize), dtype=f"u{dtype.itemsize}").view(dtype)
    patterns = np.arange(0, 2**32, 2**17 - 1, dtype=np.uint64).astype(np.uint32)
    ends = np.finfo(np.float32).max * np.array([1, -1, np.inf, -np.inf, np.nan], np.float32)
    return np.concatenate([patterns.view(np.float32), ends, np.array([0.0, -0.0], np.float32)])


def counted_by_exponent(values: np.ndarray) -> list[int]:
    """The histogram, one value at a time, with math.frexp."""
    counts = [0] * HISTOGRAM_BINS
    for value in values.tolist():
        if math.isfinite(value) and value != 0:
            exponent = math.frexp(value)[1] - 1
            counts[min(max(exponent, EXPONENT_MIN), EXPONENT_MAX) - EXPONENT_MIN] += 1
    return counts


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # signalling NaN
@pytest.mark.parametrize("name", FORMATS)
def test_every_value_of_a_format(name):
    values = every_value(name)
    wide = values.astype(np.float64)
    info = ml_dtypes.finfo(dtype_of(name))
    ours = describe(values)
    finite = wide[np.isfinite(wide)]
    nonzero = np.abs(finite[finite != 0])
    assert ours.count == values.size
    assert ours.zeros == int((wide == 0).sum())
    assert ours.subnormals == int((nonzero < float(info.smallest_normal)).sum())
    assert ours.positive_infinities == int(np.isposinf(wide).sum())
    assert ours.negative_infinities == int(np.isneginf(wide).sum())
    assert ours.nans == int(np.isnan(wide).sum())
    assert (ours.min, ours.max) == (float(info.min), float(info.max))
    assert ours.absmax == float(info.max)
    assert ours.smallest_nonzero == nonzero.min()
    assert ours.headroom_bits == 0.0
    assert ours.nonzero == nonzero.size == ours.histogram.sum()
    assert ours.histogram.tolist() == counted_by_exponent(wide)
    assert ours.histogram_is_exact


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_the_number_of_subnormals_is_the_formats():
    assert describe(every_value("float16")).subnormals == 2 * (2**10 - 1)
    assert describe(every_value("bfloat16")).subnormals == 2 * (2**7 - 1)
    assert describe(every_value("float8_e4m3fn")).subnormals == 2 * (2**3 - 1)


def test_a_subnormal_is_judged_by_the_tensors_own_format():
    values = np.array([2.0**-15, 2.0**-14])
    assert describe(values.astype(np.float16)).subnormals == 1
    assert describe(values.astype(ml_dtypes.bfloat16)).subnormals == 0
    assert describe(values.astype(np.float32)).subnormals == 0


def test_mean_and_rms_are_over_finite_values():
    ours = describe(np.array([3.0, -4.0, 0.0, 5.0, np.inf, np.nan], np.float32))
    assert ours.mean == 1.0
    assert ours.rms == math.sqrt((9 + 16 + 25) / 4)


@pytest.mark.parametrize("values", [[], [np.nan], [np.inf, -np.inf]])
def test_without_finite_values_there_is_no_extreme(values):
    ours = describe(np.array(values, np.float32))
    assert (ours.min, ours.max, ours.absmax, ours.mean, ours.rms) == (None,) * 5
    assert (ours.smallest_nonzero, ours.headroom_bits, ours.finite) == (None, None, 0)


def test_zeros_have_an_extreme_but_no_headroom():
    ours = describe(np.array([0.0, -0.0], np.float16))
    assert (ours.zeros, ours.absmax, ours.smallest_nonzero, ours.headroom_bits) == (2, 0.0, None, None)


def test_a_scalar_and_any_shape():
    assert describe(np.float32(2.5).reshape(())).max == 2.5
    assert describe(np.ones((2, 3, 4), np.float16)).count == 24


def test_the_end_bins_take_what_lies_beyond():
    ours = describe(np.array([1e-30, 2.0**EXPONENT_MIN, 2.0**EXPONENT_MAX, 1e30], np.float32))
    assert (ours.histogram[0], ours.histogram[-1]) == (2, 2)
    assert (BIN_EXPONENTS[0], BIN_EXPONENTS[-1]) == (EXPONENT_MIN, EXPONENT_MAX)


def test_a_large_tensors_histogram_looks_at_every_kth_block():
    size = 3 * HISTOGRAM_LIMIT + 1
    values = np.ones(size, np.float32)
    stride = histogram_stride(size)
    looked_at = [i for start in range(0, size, BLOCK * stride) for i in range(start, min(start + BLOCK, size))]
    values[looked_at[:10]] = 4.0  # seen
    values[BLOCK : BLOCK + 10] = 16.0  # between the blocks: not seen by the histogram, seen by all other counts
    ours = describe(values)
    assert stride > 1
    assert ours.histogram_count == len(looked_at) <= HISTOGRAM_LIMIT
    assert not ours.histogram_is_exact
    assert ours.histogram[2 - EXPONENT_MIN] == 10
    assert ours.histogram[4 - EXPONENT_MIN] == 0
    assert (ours.count, ours.max) == (size, 16.0)


@pytest.mark.parametrize("cut", [0, 1, 700, 1000])
def test_merging_parts_gives_the_whole(cut):
    random = np.random.default_rng(7)
    # Multiples of 2**-10 below 8: all sums are exact in float64, so the pooled mean is compared without tolerance.
    values = (random.integers(-8192, 8192, 1000) / 1024).astype(np.float32)
    values[[5, 900]] = np.nan, np.inf
    whole, merged = describe(values), merge(describe(values[:cut]), describe(values[cut:]))
    assert merged.histogram.tolist() == whole.histogram.tolist()
    for name in ("count", "zeros", "subnormals", "nans", "infinities", "min", "max", "smallest_nonzero"):
        assert getattr(merged, name) == getattr(whole, name)
    # The parts' means are rounded once each before they are pooled: two roundings of float64.
    assert merged.mean == pytest.approx(whole.mean, rel=1e-14)
    assert merged.rms == pytest.approx(whole.rms, rel=1e-14)


def test_tensors_of_different_formats_do_not_merge():
    with pytest.raises(ValueError, match="Cannot merge statistics of float16 with statistics of float32"):
        merge(describe(np.ones(1, np.float16)), describe(np.ones(1, np.float32)))


def test_a_dtype_without_a_format_is_refused():
    with pytest.raises(ValueError, match="Unknown float format 'int32'"):
        describe(np.ones(1, np.int32))
