"""What-if counts against really casting the values with NumPy and ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from precscope.formats import FORMATS
from precscope.statistics import EXPONENT_MAX, EXPONENT_MIN, HISTOGRAM_BINS, describe
from precscope.what_if import what_if

NARROW = ["float16", "bfloat16", "float8_e5m2", "float8_e4m3fn"]
POWERS_OF_TWO = [2.0**bits for bits in (-15, -3, 0, 1, 15)]
OTHER_RATIOS = [1 / 3, 3.0, 1000.0]


def cast(values: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(np.dtype(getattr(ml_dtypes, name, name))).astype(np.float64)


def gradients(seed: int = 1, spread: float = 6.0) -> np.ndarray:
    """Values over many octaves, some of them exact powers of two, so that ties with the limits occur."""
    random = np.random.default_rng(seed)
    magnitudes = np.exp2(random.normal(-14, spread, 20_000))
    magnitudes[:2000] = np.exp2(random.integers(-40, 17, 2000))
    return (magnitudes * random.choice([-1, 1], magnitudes.size)).astype(np.float32)


def really(values: np.ndarray, name: str, ratio: float) -> dict[str, int]:
    """Count by casting; the product with a power of two is exact in float32."""
    scaled = values.astype(np.float64) * ratio
    result, scaled = cast(scaled.astype(np.float32), name), np.abs(scaled)
    tiny = (scaled < FORMATS[name].smallest_normal) & (result != 0)
    return {
        "flushed": int((result == 0).sum()),
        "subnormal": int(tiny.sum()),
        "overflow": int((~np.isfinite(result)).sum()),
        "on the flush limit": int((scaled == FORMATS[name].flush_limit).sum()),
    }


@pytest.mark.parametrize("extremes", [True, False], ids=["extremes known", "extremes unknown"])
@pytest.mark.parametrize("ratio", POWERS_OF_TWO)
@pytest.mark.parametrize("name", NARROW)
def test_brackets_hold_what_a_cast_does(name, ratio, extremes):
    values = gradients()
    known = describe(values)
    bounds = {"absmax": known.absmax, "smallest_nonzero": known.smallest_nonzero} if extremes else {}
    answer, truth = what_if(known.histogram, FORMATS[name], scale_ratio=ratio, **bounds), really(values, name, ratio)
    assert answer.nonzero == values.size
    for kind in ("flushed", "subnormal", "overflow"):
        bracket = getattr(answer, kind)
        assert bracket.lower <= truth[kind] <= bracket.upper
    # Exact by definition, where the limits are octave edges within the window (an extreme may narrow the tie).
    if name != "bfloat16" and not extremes:
        assert answer.flushed.lower == truth["flushed"] - truth["on the flush limit"]
        assert answer.flushed.lower + answer.subnormal.upper == truth["flushed"] + truth["subnormal"]
        assert answer.flushed.upper + answer.subnormal.lower == truth["flushed"] + truth["subnormal"]


@pytest.mark.parametrize("ratio", OTHER_RATIOS)
@pytest.mark.parametrize("name", NARROW)
def test_other_ratios_widen_the_bracket_and_still_hold_the_truth(name, ratio):
    values = gradients(seed=2)
    known = describe(values)
    answer, truth = what_if(known.histogram, FORMATS[name], scale_ratio=ratio), really(values, name, ratio)
    for kind in ("flushed", "subnormal", "overflow"):
        bracket = getattr(answer, kind)
        assert bracket.lower <= truth[kind] <= bracket.upper


def test_the_octave_below_the_smallest_subnormal_rounds_up_to_it():
    float16 = FORMATS["float16"]
    values = np.float32([1.5, 1.0]) * np.float32(float16.flush_limit)  # the second is the tie, which goes to zero
    assert cast(values, "float16").tolist() == [float16.smallest_subnormal, 0.0]
    answer = what_if(describe(values).histogram, float16)
    assert (answer.flushed.lower, answer.flushed.upper) == (0, 2)


def test_the_largest_magnitude_decides_inside_the_top_octave():
    float16 = FORMATS["float16"]
    fits, overflows = np.float32([40000.0, 65519.0]), np.float32([40000.0, 65520.0])
    histogram = describe(fits).histogram
    assert histogram.tolist() == describe(overflows).histogram.tolist()
    bracket = what_if(histogram, float16, absmax=65519.0).overflow
    assert (bracket.lower, bracket.upper, bracket.exact) == (0, 0, True)
    bracket = what_if(histogram, float16, absmax=65520.0).overflow
    assert (bracket.lower, bracket.upper, bracket.exact) == (1, 2, False)
    bracket = what_if(histogram, float16).overflow
    assert (bracket.lower, bracket.upper) == (0, 2)


def test_e4m3fn_rounds_the_tie_down_to_its_largest_number():
    e4m3 = FORMATS["float8_e4m3fn"]
    assert cast(np.float32([464.0]), e4m3.name)[0] == e4m3.max
    histogram = describe(np.float32([464.0])).histogram
    assert what_if(histogram, e4m3, absmax=464.0).overflow.upper == 0
    assert what_if(histogram, e4m3, absmax=464.01).overflow.lower == 1


def test_of_a_sampled_histogram_an_extreme_bounds_but_does_not_count():
    """The largest value overflows, but the histogram may not have looked at it."""
    histogram = describe(np.float32([40000.0, 40000.0])).histogram
    bracket = what_if(histogram, FORMATS["float16"], absmax=1e5, is_exact=False).overflow
    assert (bracket.lower, bracket.upper) == (0, 2)
    assert what_if(histogram, FORMATS["float16"], absmax=65519.0, is_exact=False).overflow.upper == 0


def test_the_end_bins_are_open():
    histogram = np.zeros(HISTOGRAM_BINS, np.uint64)
    histogram[0], histogram[-1] = 5, 7
    bfloat16, float32 = FORMATS["bfloat16"], FORMATS["float32"]
    answer = what_if(histogram, bfloat16)
    assert (answer.flushed.lower, answer.flushed.upper) == (0, 5)
    assert (answer.overflow.lower, answer.overflow.upper) == (0, 7)
    answer = what_if(histogram, bfloat16, absmax=2.0**EXPONENT_MAX, smallest_nonzero=2.0**EXPONENT_MIN)
    assert (answer.flushed.upper, answer.subnormal.upper, answer.overflow.upper) == (0, 0, 0)
    assert what_if(histogram, float32, absmax=3e38, smallest_nonzero=1e-30).overflow.upper == 0


def test_many_tensors_at_once_agree_with_one_by_one():
    arrays = [gradients(seed, spread) for seed, spread in ((3, 2.0), (4, 9.0), (5, 0.5))]
    known = [describe(values) for values in arrays]
    stacked = what_if(
        np.stack([k.histogram for k in known]),
        FORMATS["float16"],
        scale_ratio=0.25,
        absmax=[known[0].absmax, np.nan, known[2].absmax],
        smallest_nonzero=[np.nan, known[1].smallest_nonzero, known[2].smallest_nonzero],
    )
    for row, k in enumerate(known):
        one = what_if(
            k.histogram,
            FORMATS["float16"],
            scale_ratio=0.25,
            absmax=None if row == 1 else k.absmax,
            smallest_nonzero=None if row == 0 else k.smallest_nonzero,
        )
        for kind in ("flushed", "subnormal", "overflow"):
            assert getattr(stacked, kind).lower[row] == getattr(one, kind).lower
            assert getattr(stacked, kind).upper[row] == getattr(one, kind).upper


def test_an_empty_histogram_has_nothing_to_lose():
    answer = what_if(np.zeros(HISTOGRAM_BINS, np.uint64), FORMATS["float16"], absmax=1e9, smallest_nonzero=1e-9)
    assert (answer.nonzero, answer.flushed.upper, answer.subnormal.upper, answer.overflow.upper) == (0, 0, 0, 0)
    assert (answer.flushed.lower, answer.subnormal.lower, answer.overflow.lower) == (0, 0, 0)


def test_wrong_shapes_and_ratios_are_refused():
    with pytest.raises(ValueError, match=r"Expected histograms of shape \[..., 64\]. Received shape \(63,\)"):
        what_if(np.zeros(63), FORMATS["float16"])
    for ratio in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="Expected a positive, finite scale_ratio"):
            what_if(np.zeros(HISTOGRAM_BINS), FORMATS["float16"], scale_ratio=ratio)
