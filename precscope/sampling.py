"""Which step is sampled next: every N steps, or as often as the overhead budget pays for.

Plain arithmetic without a clock: costs and times are passed in. Between samples the training loop compares one
integer, `Sampler.next_step`.

The budget is kept over the whole run: what all samples cost so far, and the next one, may not exceed
`overhead_budget` times the plain training time until then. A sample also waits until it has paid for itself since the
last one, so that training outside the window, or a slow start, does not end in a burst of samples.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from precscope.options import Options

__all__ = ["Sampler"]

#: Steps from the first sample, which compiles, to the second, which tells what a sample costs; also the least distance
#: between later ones, so that there are plain steps in between to measure.
_CALIBRATION_STEPS = 10
#: The next sample may cost this much more than expected before the budget is exceeded.
_MARGIN = 1.25
_REMEMBERED_COSTS = 5


class Sampler:
    """Decides which train step is sampled.

    Attributes:
        next_step: The step to sample next: any step from this number on is due. None for never again.
    """

    def __init__(self, options: Options, meets_others: bool = False) -> None:
        """Follow `options`: every, overhead_budget, start and stop.

        Args:
            options: What the user asked for.
            meets_others: Whether other workers train the same steps, each with a sampler of its own. Gaps are then
                rounded up to powers of two and samples to multiples of them: of two such grids one holds the other, so
                that workers mostly sample the same steps without a word between them.
        """
        self._meets_others = meets_others
        self.next_step: int | None = None
        self._every = options.every
        self._budget = options.overhead_budget
        self._start = options.start
        self._stop = options.stop
        self._spent_ns = 0
        self._costs_ns: deque[int] = deque(maxlen=_REMEMBERED_COSTS)
        self._plain_step_ns: float | None = None
        self._plain_time_ns = 0.0  # of the steps before `_counted_steps`
        self._counted_steps = 0
        self._calibration_gap = _CALIBRATION_STEPS
        self.start_at(0)

    def start_at(self, step: int) -> None:
        """Begin with `step`, the first that the session sees: due is the first of the window from there on."""
        self._counted_steps = step
        first = max(self._start, step)
        self._set_next(first if self._every is None else self._on_grid(first))

    def sampled(self, step: int, cost_ns: int | None, plain_step_ns: float | None) -> None:
        """Take note that `step` was sampled, and choose the next.

        Args:
            step: The step that was sampled.
            cost_ns: What the sample cost beyond a plain step, in nanoseconds. None for a step that compiled: compiling
                is paid once, whatever the spacing, so it takes no part in the budget and is reported apart.
            plain_step_ns: Mean time of the plain steps since the last sample, in nanoseconds; None where unknown.
        """
        self._count_plain_time(step, plain_step_ns)
        if cost_ns is not None:
            cost_ns = max(cost_ns, 0)  # a difference of two noisy times may be negative
            self._spent_ns += cost_ns
            self._costs_ns.append(cost_ns)
        if self._every is not None:
            self._set_next(self._on_grid(step + 1))
        elif not self._costs_ns or self._plain_step_ns is None:
            self._set_next(step + self._calibration_gap)
            self._calibration_gap *= 2  # compiling over and over tells no cost: try less and less often
        else:
            due = max(self._affordable_step(), step + self._steady_gap(), step + _CALIBRATION_STEPS)
            self._set_next(_on_nested_grid(step, due) if self._meets_others else due)

    def is_in_window(self, step: int) -> bool:
        """Tell whether the options allow `step` to be sampled at all."""
        return step >= self._start and (self._stop is None or step < self._stop)

    def skip(self, step: int) -> None:
        """Take note that the due `step` could not be sampled (a ragged batch, ...): the next one is due."""
        self._set_next(step + 1)

    def _set_next(self, step: int) -> None:
        self.next_step = step if self._stop is None or step < self._stop else None

    def _on_grid(self, step: int) -> int:
        """Return the first of start, start + every, ... that is not before `step`."""
        assert self._every is not None
        return self._start + math.ceil(max(step - self._start, 0) / self._every) * self._every

    def _count_plain_time(self, step: int, plain_step_ns: float | None) -> None:
        """Add the plain time of all steps up to `step`; the sampled one contains a plain step too.

        Of two means in a row the smaller one counts, for a mean may hold a pause that was no training (compiling the
        plain step, a checkpoint): too little time is on the safe side.
        """
        if plain_step_ns is None or plain_step_ns <= 0:
            return
        if self._plain_step_ns is not None:
            self._plain_time_ns += (step + 1 - self._counted_steps) * min(self._plain_step_ns, plain_step_ns)
            self._counted_steps = step + 1
        self._plain_step_ns = plain_step_ns

    def _expected_cost_ns(self) -> float:
        """Return what the next sample will cost: one outlier is not expected to last, a change is."""
        return max(median(self._costs_ns), self._costs_ns[-1])

    def _affordable_step(self) -> int:
        """Return the first step at whose beginning the budget covers all samples so far and the next."""
        assert self._plain_step_ns is not None
        needed_ns = (self._spent_ns + _MARGIN * self._expected_cost_ns()) / self._budget - self._plain_time_ns
        return self._counted_steps + math.ceil(needed_ns / self._plain_step_ns)

    def _steady_gap(self) -> int:
        """Return the distance at which samples cost exactly the budget."""
        assert self._plain_step_ns is not None
        return math.ceil(self._expected_cost_ns() / (self._budget * self._plain_step_ns))


def _on_nested_grid(step: int, due: int) -> int:
    """Return the first step from `due` on that is a multiple of a power of two of at least the distance to `step`."""
    distance = 1 << (due - step - 1).bit_length()
    return math.ceil(due / distance) * distance
