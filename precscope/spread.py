"""Median and quartiles: how a measurement that was taken several times is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Spread", "spread_of"]


@dataclass(frozen=True)
class Spread:
    """What lies in the middle of several measurements, in their unit.

    Attributes:
        median: Half of the weight lies at or below it.
        lower_quartile: A quarter lies at or below it.
        upper_quartile: Three quarters lie at or below it.
        count: How many measurements there were.
    """

    median: float
    lower_quartile: float
    upper_quartile: float
    count: int


def spread_of(values: Sequence[float], weights: Sequence[float] | None = None) -> Spread | None:
    """Return median and quartiles, or None of nothing.

    Args:
        values: The measurements, finite.
        weights: What each stands for, positive, such as the number of steps that a mean was taken over. Without them
            quantiles are interpolated between neighbours; with them they are values that occurred.
    """
    if not values:
        return None
    shares = (0.25, 0.5, 0.75)
    if weights is None:
        lower, median, upper = (float(quantile) for quantile in np.quantile(values, shares))
    else:
        order = np.argsort(values)
        reached = np.cumsum(np.asarray(weights, float)[order])
        lower, median, upper = (float(values[order[np.searchsorted(reached, part * reached[-1])]]) for part in shares)
    return Spread(median, lower, upper, len(values))
