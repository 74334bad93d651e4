"""Median and quartiles."""

from __future__ import annotations

import numpy as np
import pytest

from precscope.spread import Spread, spread_of


def test_of_nothing_is_none():
    assert spread_of([]) is None
    assert spread_of([], []) is None


def test_without_weights_it_is_numpys():
    values = (5.0, 1.0, 4.0, 2.0)
    lower, median, upper = np.quantile(values, (0.25, 0.5, 0.75))
    assert spread_of(values) == Spread(median, lower, upper, 4)


@pytest.mark.parametrize(
    ("values", "weights"),
    [([3.0, 1.0, 2.0], [1, 1, 1]), ([3.0, 1.0, 2.0], [1, 10, 1]), ([7.0], [4]), ([2.0, 1.0, 9.0, 4.0], [3, 2, 7, 4])],
)
def test_weights_are_repetitions(values, weights):
    repeated = np.repeat(values, weights)
    lower, median, upper = np.quantile(repeated, (0.25, 0.5, 0.75), method="inverted_cdf")
    assert spread_of(values, weights) == Spread(median, lower, upper, len(values))
