"""When the loss scale moved, from looks at the optimizer that lie far apart.

Between two looks the counters tell how many steps were skipped, each of which halves the scale; together with the scale
itself they tell how often it was doubled. Both numbers are exact. Keras' counter of finite steps since the last change
tells at which step that one was, and the rule by which the scale grows (doubled after so many finite steps in a row)
often tells the others. Where it does not, a change is bracketed by the steps between which it must have been.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.records import LossScaleRecord

__all__ = ["ScaleChange", "ScaleHistory", "ScaleInterval", "scale_history"]


@dataclass(frozen=True)
class ScaleChange:
    """The scale was doubled, or halved because a step was skipped.

    Attributes:
        earliest: The first train step that can have done it.
        latest: The last one; the same where the step is known exactly.
        before: The scale until then; None where the order of several changes is not known.
        raised: Whether it was doubled; else the step was skipped.
    """

    earliest: int
    latest: int
    before: float | None
    raised: bool

    @property
    def is_exact(self) -> bool:
        """Whether the step is known."""
        return self.earliest == self.latest


@dataclass(frozen=True)
class ScaleInterval:
    """The steps between two looks.

    Attributes:
        start: The first of the steps.
        end: The first step after them.
        skipped: How many of them were skipped.
        before: The scale at the first look; None where unknown.
        after: The scale at the second look; None where unknown.
        changes: What moved the scale, in the order in which it happened where that is known.
        explained: False where the counters and the scale do not fit Keras' rule: it was set by hand, or the optimizer
            was replaced.
    """

    start: int
    end: int
    skipped: int
    before: float | None
    after: float | None
    changes: tuple[ScaleChange, ...]
    explained: bool = True


@dataclass(frozen=True)
class ScaleHistory:
    """What is known about the loss scale of a run.

    Attributes:
        intervals: The steps between looks, in order.
        seen: Train steps up to the last look.
        applied: Steps that were applied; None where unknown.
        skipped: Steps that were skipped; None where unknown.
        scale: The scale at the last look; None without one.
        since_change: Finite steps since the scale last moved, at the last look; None without a dynamic scale.
        until_growth: Finite steps in a row after which the scale will be doubled; None where unknown.
        held_before: Finite steps in a row that the optimizer had made at its scale when the session began.
    """

    intervals: tuple[ScaleInterval, ...]
    seen: int = 0
    applied: int | None = None
    skipped: int | None = None
    scale: float | None = None
    since_change: int | None = None
    until_growth: int | None = None
    held_before: int = 0

    @property
    def changes(self) -> tuple[ScaleChange, ...]:
        """All changes, in order."""
        return tuple(change for interval in self.intervals for change in interval.changes)


def scale_history(
    looks: Sequence[LossScaleRecord], growth_steps: int | None = None, initial_scale: float | None = None
) -> ScaleHistory:
    """Return what the looks tell.

    Args:
        looks: In the order of time.
        growth_steps: After how many finite steps in a row the scale is doubled; None where that is unknown.
        initial_scale: The scale that the run began with, for looks that do not begin at step 0; None where unknown.
    """
    if not looks:
        return ScaleHistory(())
    first, last = looks[0], looks[-1]
    pairs = list(pairwise(looks))
    if first.step > 0:
        counter = None if first.steps_since_change is None else 0
        pairs.insert(0, (type(first)(0, initial_scale, 0, 0, counter), first))
    since = last.steps_since_change
    return ScaleHistory(
        intervals=tuple(_interval(a, b, growth_steps) for a, b in pairs if b.step > a.step),
        seen=last.step,
        applied=last.steps_applied,
        skipped=last.steps_skipped,
        scale=last.loss_scale,
        since_change=since,
        until_growth=growth_steps - since if growth_steps is not None and since is not None else None,
        held_before=(first.steps_since_change or 0) if first.step == 0 else 0,
    )


def _interval(a: LossScaleRecord, b: LossScaleRecord, growth_steps: int | None) -> ScaleInterval:
    skipped = max((b.steps_skipped or 0) - (a.steps_skipped or 0), 0)
    raised = _raised(a.loss_scale, b.loss_scale, skipped) if skipped or a.loss_scale != b.loss_scale else 0
    explained = raised is not None and _can_have_grown(raised, a, b, growth_steps)
    changes = _changes(a, b, skipped, raised, growth_steps) if explained and raised is not None else ()
    return ScaleInterval(a.step, b.step, skipped, a.loss_scale, b.loss_scale, changes, explained)


def _raised(before: float | None, after: float | None, skipped: int) -> int | None:
    """Return how often the scale was doubled; None where the numbers do not fit."""
    if before is None or after is None or before <= 0:
        return None
    if after <= 0:
        return 0  # it left float32 at the lower end: only halvings lead there
    raised = math.log2(after) - math.log2(before) + skipped
    return round(raised) if raised > -0.01 and abs(raised - round(raised)) < 0.01 else None


def _can_have_grown(raised: int, a: LossScaleRecord, b: LossScaleRecord, growth_steps: int | None) -> bool:
    if growth_steps is None or not raised:
        return True
    return raised * growth_steps <= b.step - a.step + (a.steps_since_change or 0)


def _changes(
    a: LossScaleRecord, b: LossScaleRecord, skipped: int, raised: int, growth_steps: int | None
) -> tuple[ScaleChange, ...]:
    scale, counter = a.loss_scale, b.steps_since_change
    moved = counter is not None and counter < b.step - a.step
    last = b.step - 1 - (counter or 0) if moved else b.step - 1
    if not raised:
        return _spread(a.step, last, skipped, scale, moved)
    if growth_steps is not None and a.steps_since_change is not None and skipped <= 1:
        first_growth = a.step + growth_steps - 1 - a.steps_since_change
        orders = _orders(first_growth, a.step, last, raised, skipped, growth_steps)
        if len(orders) == 1:
            return _in_order(orders[0], scale)
    ups = [ScaleChange(a.step, last, None, raised=True)] * raised
    return (*ups, *[ScaleChange(a.step, last, None, raised=False)] * skipped)


def _spread(start: int, last: int, skipped: int, scale: float | None, is_last_exact: bool) -> tuple[ScaleChange, ...]:
    """Return halvings of which only the last one's step is known, and their order: each leaves room for the others."""
    changes = []
    for number in range(skipped):
        latest = last - (skipped - 1 - number)
        earliest = latest if is_last_exact and number == skipped - 1 else start + number
        before = None if scale is None else scale / 2**number
        changes.append(ScaleChange(earliest, latest, before, raised=False))
    return tuple(changes)


def _orders(
    first_growth: int, start: int, last: int, raised: int, skipped: int, growth_steps: int
) -> list[list[tuple[int, bool]]]:
    """Return every order of `raised` doublings and at most one halving that ends at `last`, as (step, was raised)."""
    grown = [first_growth + number * growth_steps for number in range(raised + 1)]
    if not skipped:
        return [[(step, True) for step in grown[:-1]]] if grown[raised - 1] == last else []
    found = []
    for earlier in range(raised + 1):  # doublings before the skipped step; the others follow it at their distance
        skip = last - growth_steps * (raised - earlier)
        begins = grown[earlier - 1] + 1 if earlier else start
        if begins <= skip <= grown[earlier]:
            later = [skip + growth_steps * (number + 1) for number in range(raised - earlier)]
            found.append([*((step, True) for step in grown[:earlier]), (skip, False), *((s, True) for s in later)])
    return found


def _in_order(order: list[tuple[int, bool]], scale: float | None) -> tuple[ScaleChange, ...]:
    changes = []
    for step, raised in order:
        changes.append(ScaleChange(step, step, scale, raised))
        scale = None if scale is None else scale * 2 if raised else scale / 2
    return tuple(changes)
