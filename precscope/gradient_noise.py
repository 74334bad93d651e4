"""Whether the errors of a gradient drown in the noise that batches have anyway.

Each batch gives another gradient; a training lives with that. An error that scatters from batch to batch adds to this
noise, and matters as far as it adds: a variance that is 2 % higher is that of batches with 2 % fewer examples
(McCandlish et al., "An Empirical Model of Large-Batch Training", 2018, section 2). An error that all batches share is
another thing: it does not average out, however many steps are taken. So two questions are asked, both of batches at the
same weights: what does the error add to their variance, and how far does the part that they share move their mean?
Rounding passes; a fault (a position that float16 cannot tell from the next, a sum that stands still) moves the mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.replay import Criterion, VariableComparison

__all__ = ["Noise", "WholeGradient", "could_be_noise", "is_noise", "whole_noise"]


@dataclass(frozen=True)
class Noise:
    """How a gradient scatters over batches at the same weights, and its error under the policy with it.

    All are squares of lengths, so that those of several variables add up.

    Attributes:
        variance: Of the gradients in float32 between batches.
        error: Mean square of the error.
        shared_error: Mean scalar product of the errors of two batches, which estimates the square of what all share.
            Of errors without a common direction it is about 0, and as often below as above.
        mean: Square of the batches' mean gradient in float32.
    """

    variance: float
    error: float
    shared_error: float
    mean: float

    @property
    def added_variance(self) -> float:
        """What the errors add to the variance between batches, as a share of it."""
        return _share(self.error, self.variance)

    @property
    def moved(self) -> float:
        """The length of the error that all batches share, as a share of their mean gradient's."""
        return math.sqrt(_share(max(self.shared_error, 0.0), self.mean))


def _share(part: float, whole: float) -> float:
    if part == 0:
        return 0.0
    return part / whole if whole > 0 else math.inf


def whole_noise(comparisons: Sequence[VariableComparison]) -> Noise | None:
    """Return the noise of all variables together; None where that of one was not measured."""
    parts = [item.noise for item in comparisons if item.noise is not None]
    if not parts or len(parts) < len(comparisons):
        return None
    return Noise(
        sum(part.variance for part in parts),
        sum(part.error for part in parts),
        sum(part.shared_error for part in parts),
        sum(part.mean for part in parts),
    )


def could_be_noise(comparisons: Sequence[VariableComparison], criterion: Criterion) -> bool:
    """Tell whether gradients are near enough to float32 for noise to be an excuse, so that it is worth measuring."""
    whole = WholeGradient(comparisons)
    return _cosine(whole) >= criterion.gradient_floor and all(
        _is_negligible(item, whole.length, criterion) or _cosine(item) >= criterion.variable_floor
        for item in _turned_variables(comparisons, whole.length, criterion)
    )


def is_noise(comparisons: Sequence[VariableComparison], criterion: Criterion) -> bool:
    """Tell whether all that is turned further than the criterion's cosines allow is so by noise."""
    noise, whole = whole_noise(comparisons), WholeGradient(comparisons)
    if noise is None or not could_be_noise(comparisons, criterion):
        return False
    if _cosine(whole) < criterion.gradient_cosine and not (
        noise.added_variance <= criterion.added_variance and noise.moved <= criterion.moved_mean
    ):
        return False
    return all(
        item.noise is not None
        and item.noise.moved <= criterion.variable_moved_mean
        and (
            _is_negligible(item, whole.length, criterion)
            or item.noise.added_variance <= criterion.variable_added_variance
        )
        for item in _turned_variables(comparisons, whole.length, criterion)
    )


class WholeGradient:
    """All gradients together.

    Attributes:
        finite: Whether every element under the policy is finite.
        length: Euclidean norm in float32.
        norm: Euclidean norm under the policy; NaN where that is not finite.
        cosine: Of both; None where one of them is zero or not finite.
    """

    def __init__(self, comparisons: Sequence[VariableComparison]) -> None:
        self.finite = all(item.finite for item in comparisons)
        self.length = math.hypot(*(item.norm_reference for item in comparisons))
        self.norm = math.hypot(*(item.norm for item in comparisons)) if self.finite else math.nan
        product = self.length * self.norm
        self.cosine = sum(item.dot for item in comparisons) / product if product > 0 else None


def _turned_variables(
    comparisons: Sequence[VariableComparison], length: float, criterion: Criterion
) -> list[VariableComparison]:
    """Return those that count and are turned further than one alone may be."""
    counting = (item for item in comparisons if item.norm_reference > criterion.negligible_norm * length)
    return [item for item in counting if _cosine(item) < criterion.variable_cosine]


def _cosine(item: VariableComparison | WholeGradient) -> float:
    return -1.0 if item.cosine is None else item.cosine


def _is_negligible(item: VariableComparison, length: float, criterion: Criterion) -> bool:
    return item.error <= criterion.negligible_error * length
