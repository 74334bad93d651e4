"""Why steps were skipped: the loss scale seeking its level, which is healthy, or a fault.

Skipped steps that may have followed each other are judged together, as one stretch. A fault needs positive evidence:
without it a stretch that training recovered from is taken for what a dynamic loss scale does all the time. Evidence is

- a sampled step inside the stretch whose data, weights or forward pass held infinities or NaN: no scale does that;
- sampled gradients on either side, all of them with much room left at the scale of the stretch: the scale was not too
  high;
- many skips in a row, after the scale had held: each halving is one bit, and gradients do not grow by that many bits
  from one step to the next and shrink again;
- a scale below 1, which is less than no scaling at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from precscope.loss_scale_history import ScaleChange, ScaleHistory

__all__ = ["FAULTS", "Cause", "ForwardFault", "SampledStep", "SkippedStretch", "judge_skips", "main_cause"]

#: "search": the first descent from the initial scale. "probe": the scale had just been doubled, and was one too high.
#: "spike": a scale that had held was too high for a step or two, why is not known. "bad_batch": gradients far beyond
#: what the scale explains, in single steps. "forward_overflow": the forward pass was not finite. "bad_weights": weights
#: were not finite. "any_scale": step after step was skipped at every scale. "collapse": so long that it fell below 1.
Cause = Literal["search", "probe", "spike", "bad_batch", "forward_overflow", "bad_weights", "any_scale", "collapse"]
ForwardFault = Literal["data", "weights", "forward"]

#: Causes that are a fault, worst first; the others are healthy.
FAULTS: tuple[Cause, ...] = ("collapse", "bad_weights", "any_scale", "forward_overflow", "bad_batch")
_HEALTHY: tuple[Cause, ...] = ("search", "probe", "spike")

_HELD_STEPS = 50  # so many finite steps in a row at one scale end the first search
_PROBE_SKIPS = 2  # a probe takes one halving, or two where gradients grew meanwhile
_ROW = 10  # so many up to the last step that was seen: nothing was learned, whatever a longer run would have shown
_SUNK_BITS = 5  # so many halvings without a growth between them, up to the last step that was seen, are no probe
_ROOM_BITS = 4.0  # gradients that were not recorded may be larger than those that were, but hardly by so much
_NEIGHBOURS = 8  # samples on each side: the largest gradient of one batch may be several bits from that of the next


@dataclass(frozen=True)
class SampledStep:
    """What one sampled step tells about its skip.

    Attributes:
        step: The train step.
        skipped: Whether the optimizer skipped it.
        loss_scale: The scale that its gradients carried.
        fault: What was not finite before the gradients were: the data, the weights or another layer's output.
        headroom_bits: How often its largest float16 gradient could have doubled; None where one was not finite.
    """

    step: int
    skipped: bool
    loss_scale: float
    fault: ForwardFault | None = None
    headroom_bits: float | None = None


@dataclass(frozen=True)
class SkippedStretch:
    """Skipped steps that may have followed each other.

    Attributes:
        earliest: The first step that can belong to it.
        latest: The last one.
        is_exact: Whether it is known which steps were skipped.
        skipped: How many steps were.
        in_row: How many in a row, at least.
        before: The loss scale of the first; None where the order of events is not known.
        after: The loss scale behind the last.
        recovered: Whether a step was applied afterwards.
        cause: Why.
        bits_too_many: By how many bits the scale was too high, at most: less than one bit less would have held no
            better. None where it was no matter of scale, or training has not recovered.
    """

    earliest: int
    latest: int
    is_exact: bool
    skipped: int
    in_row: int
    before: float | None
    after: float | None
    recovered: bool
    cause: Cause
    bits_too_many: int | None

    @property
    def is_fault(self) -> bool:
        """Whether something is wrong."""
        return self.cause in FAULTS


def judge_skips(history: ScaleHistory, samples: Iterable[SampledStep] = ()) -> tuple[SkippedStretch, ...]:
    """Return every stretch of skipped steps and why it was skipped, in order."""
    known = sorted(samples, key=lambda sample: sample.step)
    changes = history.changes
    stretches = []
    for first, last in _groups(changes):
        held = _held_before(changes[:first], changes[first], history.held_before)
        grown = first > 0 and changes[first - 1].raised
        ends = changes[last + 1].earliest if last + 1 < len(changes) else history.seen
        stretches.append(_stretch(changes[first : last + 1], _scale_after(history, last), held, grown, ends, known))
    return tuple(stretches)


def main_cause(stretches: Sequence[SkippedStretch]) -> Cause | None:
    """Return the worst cause of all; of the healthy ones the most frequent; None where nothing was skipped."""
    causes = [stretch.cause for stretch in stretches]
    for fault in FAULTS:
        if fault in causes:
            return fault
    usual: Cause = max(_HEALTHY, key=causes.count)
    return usual if causes else None


def _groups(changes: Sequence[ScaleChange]) -> list[tuple[int, int]]:
    """Return first and last index of halvings that may have followed each other."""
    groups: list[tuple[int, int]] = []
    for index, change in enumerate(changes):
        if change.raised:
            continue
        previous = changes[index - 1] if index else None
        if groups and previous is not None and not previous.raised and change.earliest <= previous.latest + 1:
            groups[-1] = (groups[-1][0], index)
        else:
            groups.append((index, index))
    return groups


def _held_before(earlier: Sequence[ScaleChange], first: ScaleChange, held_at_start: int) -> bool:
    """Tell whether the scale was ever known to hold before this stretch."""
    if held_at_start >= _HELD_STEPS or any(change.raised for change in earlier):
        return True
    ends = [-1, *(change.latest for change in earlier)]
    begins = [*(change.earliest for change in earlier), first.latest]
    return any(begin - end - 1 >= _HELD_STEPS for end, begin in zip(ends, begins, strict=True))


def _scale_after(history: ScaleHistory, index: int) -> float | None:
    """Return the scale behind a halving; where the order of events is not known, that at the next look."""
    change = history.changes[index]
    if change.before is not None:
        return change.before / 2
    return next(interval.after for interval in history.intervals if change in interval.changes)


def _stretch(
    changes: Sequence[ScaleChange],
    after: float | None,
    held: bool,
    grown: bool,
    ends: int,
    samples: Sequence[SampledStep],
) -> SkippedStretch:
    first, last, skipped = changes[0], changes[-1], len(changes)
    window = last.latest - first.earliest + 1
    in_row = -(-skipped // (window - skipped + 1))
    recovered = ends > last.latest + 1
    cause = _seen(samples, first.earliest, last.latest) or _explained(
        skipped, in_row, after, held=held, grown=grown, recovered=recovered, ends_skipped=last.is_exact
    )
    if cause in _HEALTHY and first.before is not None and held and _had_room(samples, first, last):
        cause = "bad_batch"
    matter_of_scale = cause in _HEALTHY and recovered and (skipped == 1 or in_row == skipped)
    return SkippedStretch(
        first.earliest,
        last.latest,
        window == skipped,
        skipped,
        in_row,
        first.before,
        after,
        recovered,
        cause,
        skipped if matter_of_scale else None,
    )


def _seen(samples: Sequence[SampledStep], earliest: int, latest: int) -> Cause | None:
    """Return the cause that a sampled step shows; None where none does."""
    faults = {s.fault for s in samples if s.skipped and earliest <= s.step <= latest}
    if "weights" in faults:
        return "bad_weights"
    if "data" in faults:
        return "bad_batch"
    return "forward_overflow" if "forward" in faults else None


def _explained(
    skipped: int, in_row: int, after: float | None, *, held: bool, grown: bool, recovered: bool, ends_skipped: bool
) -> Cause:
    if after is not None and after < 1:
        return "collapse"
    if not held:
        return "search" if recovered or skipped < _ROW else "any_scale"
    if not recovered and (in_row >= _ROW or (ends_skipped and skipped >= _SUNK_BITS)):
        return "any_scale"
    if in_row > _PROBE_SKIPS:
        return "bad_batch" if recovered else "any_scale"
    return "probe" if grown else "spike"


def _had_room(samples: Sequence[SampledStep], first: ScaleChange, last: ScaleChange) -> bool:
    """Tell whether gradients before and after would have had much room at the scale of the first skipped step."""
    assert first.before is not None
    fine = [s for s in samples if not s.skipped and s.headroom_bits is not None and s.loss_scale > 0]
    before = [s for s in fine if s.step < first.earliest][-_NEIGHBOURS:]
    after = [s for s in fine if s.step > last.latest][:_NEIGHBOURS]
    rooms = [
        s.headroom_bits + math.log2(s.loss_scale) - math.log2(first.before)
        for s in (*before, *after)
        if s.headroom_bits is not None
    ]
    return bool(before and after) and min(rooms) >= _ROOM_BITS
