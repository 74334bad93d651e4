"""Errors between a tensor and its reference: the NumPy reference and the TensorFlow version under the same tests."""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from precscope.errors_between import TensorErrors, errors_between
from precscope.probes.tensor_errors import SUMS, error_sums

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def by_numpy(reference: np.ndarray, other: np.ndarray) -> TensorErrors:
    return errors_between(reference, other)


def by_tensorflow(reference: np.ndarray, other: np.ndarray) -> TensorErrors:
    return TensorErrors.from_sums(tf.function(error_sums)(tf.constant(reference), tf.constant(other)).numpy())


both = pytest.mark.parametrize("errors", [by_numpy, by_tensorflow])
Errors = "Callable[[np.ndarray, np.ndarray], TensorErrors]"


@both
def test_exact_values(errors: Callable[..., TensorErrors]):
    r = np.array([3, 4, 1e-8, 1e6, 0, np.nan, 2], np.float32)
    p = np.array([3, 3, 0, np.inf, 0, 1, np.nan], np.float16)
    found = errors(r, p)
    tiny = float(np.float32(1e-8)) ** 2
    # compared: 3, 4, 1e-8 and 0
    assert astuple(found) == (7, 5, 1, 1, 1, 4, 25.0 + tiny, 18.0, 21.0, 1.0 + tiny)
    assert found.relative_error == pytest.approx(1 / 5)
    assert found.sqnr_db == pytest.approx(20 * math.log10(5))
    assert found.cosine == pytest.approx(21 / (5 * math.sqrt(18)))
    assert found.flushed_share == 1 / 5


@both
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_tensors_agree_with_numpy_in_float64(errors: Callable[..., TensorErrors], dtype: str):
    r = (np.random.default_rng(1).standard_normal((37, 51)) * 10.0 ** np.linspace(-9, 3, 51)).astype(np.float32)
    p = r.astype(DTYPES[dtype])
    found = errors(r, p)
    assert found.flushed == np.count_nonzero((r != 0) & (p.astype(np.float32) == 0))
    r64, p64 = r.astype(np.float64), p.astype(np.float64)
    # The order of summation differs: some units in the last place of float64.
    relative = np.linalg.norm(p64 - r64) / np.linalg.norm(r64)
    assert found.relative_error == pytest.approx(relative, rel=1e-12)
    assert found.cosine == pytest.approx((r64 * p64).sum() / np.linalg.norm(r64) / np.linalg.norm(p64), rel=1e-12)


@both
def test_rounding_leaves_the_decibels_of_its_digits(errors: Callable[..., TensorErrors]):
    r = np.random.default_rng(2).uniform(1, 2, 100_000).astype(np.float32)
    # Uniform errors of at most half a unit in the last place, 2**-11 in [1, 2), and of 2**-8 in bfloat16.
    for dtype, ulp in ((np.float16, 2**-10), (ml_dtypes.bfloat16, 2**-7)):
        expected = 10 * math.log10(np.mean(r.astype(np.float64) ** 2) / (ulp**2 / 12))
        assert errors(r, r.astype(dtype)).sqnr_db == pytest.approx(expected, abs=0.1)


@both
def test_numbers_at_the_ends_of_float32_and_subnormals(errors: Callable[..., TensorErrors]):
    r = np.array([3e38, -3e38, 1e-45], np.float32)
    found = errors(r, np.array([3e38, 0, 0], np.float32))
    assert (found.reference_nonzero, found.flushed) == (3, 2)
    assert found.relative_error == pytest.approx(math.sqrt(0.5))


@both
def test_absence_is_none(errors: Callable[..., TensorErrors]):
    zero, one = np.zeros(4, np.float32), np.ones(4, np.float32)
    assert (errors(zero, one).relative_error, errors(zero, one).cosine) == (None, None)
    assert (errors(one, one).relative_error, errors(one, one).sqnr_db) == (0.0, None)
    nothing = errors(one, one * np.nan)
    assert (nothing.compared, nothing.relative_error, nothing.cosine, nothing.nans) == (0, None, None, 4)
    assert astuple(errors(zero[:0], zero[:0])) == (0,) * SUMS


def test_sums_add_up():
    r = np.arange(8, dtype=np.float32)
    p = (r * 1.1).astype(np.float16)
    assert errors_between(r[:3], p[:3]) + errors_between(r[3:], p[3:]) == errors_between(r, p)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"received \(2,\) and \(3,\)"):
        errors_between(np.zeros(2), np.zeros(3))
