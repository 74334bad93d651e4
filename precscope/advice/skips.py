"""The skipped steps of a run, from looks at the optimizer's counters.

The counters are exact whenever they are read and silent about when in between a step was skipped. So how many steps
were skipped is exact, and the longest run of them is a lower bound: the fewest in a row that the counts allow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.records import LossScaleRecord, SampleRecord

__all__ = ["SkipHistory", "skip_history"]


@dataclass(frozen=True)
class SkipHistory:
    """What is known about skipped steps and the loss scale.

    Attributes:
        seen: Train steps between the first and the last look; of sampled steps only where `sampled_only`.
        skipped: How many of them the optimizer skipped; None where unknown.
        longest_run: Skipped steps in a row, at least.
        first_step: Number of steps seen before the look that first found one skipped; None without skips.
        unrecovered: Skipped steps since an update was last known to be applied.
        first_scale: The loss scale at the first look, or None.
        last_scale: The loss scale at the last look, or None.
        lowest_scale: The lowest scale seen, or None.
        sunk_bits: How many halvings the last scale lies below that in the middle of the run; 0 where unknown.
        sampled_only: Whether only sampled steps could be judged.
    """

    seen: int
    skipped: int | None
    longest_run: int = 0
    first_step: int | None = None
    unrecovered: int = 0
    first_scale: float | None = None
    last_scale: float | None = None
    lowest_scale: float | None = None
    sunk_bits: float = 0.0
    sampled_only: bool = False


@dataclass(frozen=True)
class _Stretch:
    """Steps between two looks: `skipped` of `steps` were skipped."""

    start: int
    steps: int
    skipped: int


def skip_history(looks: Sequence[LossScaleRecord], samples: Sequence[SampleRecord]) -> SkipHistory:
    """Return what the looks at the optimizer tell, or, where there is none, what the sampled steps tell."""
    stretches, sampled_only = _stretches(looks), False
    if not stretches:
        stretches = [_Stretch(s.step, 1, int(not s.applied)) for s in samples if s.applied is not None]
        sampled_only = True
    looked = [(look.step, look.loss_scale) for look in looks if look.loss_scale is not None]
    sampled = [(sample.step, sample.loss_scale) for sample in samples if sample.loss_scale is not None]
    scales = looked or sampled
    longest, current = _runs(stretches)
    return SkipHistory(
        seen=sum(stretch.steps for stretch in stretches),
        skipped=sum(stretch.skipped for stretch in stretches) if stretches else None,
        longest_run=longest,
        first_step=next((stretch.start for stretch in stretches if stretch.skipped), None),
        unrecovered=current,
        first_scale=scales[0][1] if scales else None,
        last_scale=scales[-1][1] if scales else None,
        lowest_scale=min((scale for _, scale in looked + sampled), default=None),
        sunk_bits=_sunk_bits(scales),
        sampled_only=bool(stretches) and sampled_only,
    )


def _sunk_bits(scales: Sequence[tuple[int, float]]) -> float:
    if not scales:
        return 0.0
    middle = (scales[0][0] + scales[-1][0]) / 2
    before, last = [scale for step, scale in scales if step <= middle][-1], scales[-1][1]
    if last <= 0:
        return math.inf if before > 0 else 0.0
    return max(0.0, math.log2(before) - math.log2(last))


def _stretches(looks: Sequence[LossScaleRecord]) -> list[_Stretch]:
    known = [(look.step, look.steps_skipped) for look in looks if look.steps_skipped is not None]
    pairs = zip([(0, 0), *known], known, strict=False)
    return [
        _Stretch(before, step - before, max(skipped - skipped_before, 0))
        for (before, skipped_before), (step, skipped) in pairs
        if step > before
    ]


def _runs(stretches: Sequence[_Stretch]) -> tuple[int, int]:
    """Return the longest run of skipped steps that the counts force, and the run that reaches the end."""
    longest = current = end = 0
    for stretch in stretches:
        applied = stretch.steps - stretch.skipped
        if applied:
            # Spread as thinly as possible, the skips of this stretch fall into `applied + 1` groups.
            longest, current = max(longest, -(-stretch.skipped // (applied + 1))), 0
        else:
            current = stretch.skipped + (current if stretch.start == end else 0)
            longest = max(longest, current)
        end = stretch.start + stretch.steps
    return longest, current
