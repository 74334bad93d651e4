"""The loss scale, the optimizer's counters and whether values are finite, looked at now and then between steps.

Reading a variable waits until the device has done all that was queued, so a look is rare: the gaps double from one
step on, until looks are a hundred steps apart (but at least half a second, at most five), and grow with the training's
length up to half a minute. Keras' counter of
steps since the scale last moved tells afterwards at which step that was (`precscope.loss_scale_history`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from precscope.error_text import failure_in_a_line
from precscope.probes.internals.optimizers import growth_counter, is_dynamic, loss_scale, update_counter
from precscope.probes.sampling_loop import NEVER
from precscope.records import LossScaleRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from precscope.origin_records import NoticedBy
    from precscope.probes.keeper import Keeper
    from precscope.probes.sampling_loop import SamplingLoop

__all__ = ["LossScalePoll", "PollSchedule"]

_SHORTEST_NS, _LONGEST_NS = 500_000_000, 30_000_000_000
# A look leaves the device idle until the next step is launched: up to a step where launching takes as long as running.
_STEPS_APART, _STEPS_APART_NS = 100, 5_000_000_000
_SHARE_OF_TRAINING = 0.01  # an interval's, so that an hour of training is looked at some hundred times
#: Skipped steps in a row after which the training is told that it learns nothing. A search from 2**15 down to 1 takes
#: fifteen.
_MANY_SKIPS = 20


class PollSchedule:
    """Chooses the steps before which to look; plain arithmetic, times are passed in.

    Attributes:
        next_step: The step before which to look next.
    """

    def __init__(self) -> None:
        self.next_step = 1
        self._gap = 1
        self._start_ns: int | None = None
        self._last: tuple[int, int] = (0, 0)

    def looked(self, step: int, now_ns: int) -> None:
        """Take note of a look after `step` steps at `now_ns`, and choose the next."""
        last_step, last_ns = self._last
        if self._start_ns is None:
            self._start_ns = now_ns
        elif step > last_step:
            step_ns = max((now_ns - last_ns) / (step - last_step), 1.0)
            shortest_ns = max(min(_STEPS_APART * step_ns, _STEPS_APART_NS), _SHORTEST_NS)
            interval_ns = min(max(_SHARE_OF_TRAINING * (now_ns - self._start_ns), shortest_ns), _LONGEST_NS)
            self._gap = max(1, min(2 * self._gap, int(interval_ns / step_ns)))
        self._last = (step, now_ns)
        self.next_step = step + self._gap


class LossScalePoll:
    """Records where the loss scale stands, and how many of the steps seen were applied.

    Args:
        optimizer: Returns the optimizer that trains.
        loop: Counts the steps, and calls the poll when it is due.
        keeper: Writes the looks.
        complaint: Returns what is not finite, None where nothing is.
        clock_ns: A monotonic clock.

    Attributes:
        noticed: Called with what was seen to be wrong, and with the last step that is known to have been right.
        before_look: Called before each look between two steps, once the device has done all that was queued.
    """

    def __init__(
        self,
        optimizer: Callable[[], Any],
        loop: SamplingLoop,
        keeper: Keeper,
        complaint: Callable[[], NoticedBy | None] = lambda: None,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._optimizer = optimizer
        self.noticed: Callable[[NoticedBy, int], None] = lambda by, last_good_step: None
        self.before_look: Callable[[], None] = lambda: None
        self._complaint = complaint
        self._complained = False
        self._seen_skips: tuple[int, int] | None = None  # steps seen and skipped at the last look
        self._loop = loop
        self._keeper = keeper
        self._clock_ns = clock_ns
        self._schedule = PollSchedule()
        self._counted = optimizer()
        self._updates_at_start, self._updates_before = self.updates(), 0
        self._last_progress = (0, 0)  # steps seen and applied at the last look that found one applied since
        #: Whether each train step that is not skipped ends with an update; not so where gradients are added up by hand.
        self.counts_skips = True
        self._off = False
        self._last_finite = -1
        loop.poll = self._poll

    def updates(self) -> int:
        """Return the updates that the optimizer has applied, once the device has done all that was queued."""
        return int(update_counter(self._optimizer()).numpy())

    def count_anew(self) -> None:
        """Go on counting applied updates where the model was compiled anew with another optimizer."""
        optimizer = self._optimizer()
        if optimizer is not self._counted:
            old = int(update_counter(self._counted).numpy())
            self._updates_before += old - self._updates_at_start
            self._counted, self._updates_at_start = optimizer, self.updates()
            self.look()

    def switch_off(self) -> None:
        """Poll no more."""
        self._off = True
        self._loop.next_poll = NEVER

    def look(self) -> None:
        """Record the loss scale and the counters as they are now, and choose when to look again."""
        optimizer, seen = self._optimizer(), self._loop.steps_seen
        if not self._counted.built:  # of several optimizers the first one used leads, and that is known only now
            self._counted = optimizer
        # The first read waits for what was queued: that is training time. The rest is what the look costs.
        applied = self._updates_before + self.updates() - self._updates_at_start
        start_ns = self._clock_ns()
        value = loss_scale(optimizer)
        scale = None if value is None else float(value.numpy() if hasattr(value, "numpy") else value)
        self._keeper.keep_loss_scale(
            LossScaleRecord(
                step=seen,
                loss_scale=scale,
                steps_applied=applied,
                steps_skipped=max(seen - applied, 0) if self.counts_skips else None,
                steps_since_change=growth_counter(optimizer),
            )
        )
        if is_dynamic(optimizer):
            self._raise_alarm(scale, seen, applied)
            if self.counts_skips:
                self._look_for_skips(seen, max(seen - applied, 0))
        self._look_for_nonfinite(seen)
        self._looked(seen, start_ns)

    def _looked(self, seen: int, start_ns: int) -> None:
        end_ns = self._clock_ns()
        self._loop.costs.add("poll", end_ns - start_ns)
        self._schedule.looked(seen, end_ns)
        self._loop.next_poll = NEVER if self._off else self._schedule.next_step

    def _look_for_skips(self, seen: int, skipped: int) -> None:
        before, self._seen_skips = self._seen_skips, (seen, skipped)
        if before is not None and skipped > before[1]:
            self.noticed("skipped step", before[0] - 1)

    def _look_for_nonfinite(self, seen: int) -> None:
        """Tell once until it is mended; a loss that was infinite stays in the running loss until the epoch ends."""
        complaint = self._complaint()
        if complaint is not None and not self._complained:
            self.noticed(complaint, self._last_finite)
        if complaint is None:
            self._last_finite = seen - 1
        self._complained = complaint is not None

    def _poll(self) -> None:
        """Look between two plain steps. A fixed scale never moves, and is not written down again."""
        try:
            self.updates()  # waits, so that what follows is the look's own time
            self.before_look()
            if is_dynamic(self._optimizer()):
                self.look()
                return
            start_ns = self._clock_ns()
            self._look_for_nonfinite(self._loop.steps_seen)
            self._looked(self._loop.steps_seen, start_ns)
        except Exception as error:  # a poll is never worth a training run
            self.switch_off()
            self._tell(f"the loss scale can no longer be followed: {failure_in_a_line(error)}")

    def _raise_alarm(self, scale: float | None, seen: int, applied: int) -> None:
        """Tell while there is time: a scale that has fallen to 0 turns the weights into NaN."""
        if applied > self._last_progress[1]:
            self._last_progress = (seen, applied)
        if scale is not None and scale < 1:
            self._tell(
                "the loss scale fell below 1 and has no lower limit: at 0 the next update turns every weight into NaN. "
                "Something overflows at any scale; stop the training and read the report."
            )
        elif self.counts_skips and seen - self._last_progress[0] >= _MANY_SKIPS:
            self._tell(
                f"{_MANY_SKIPS} train steps or more in a row were skipped, for their gradients were not finite: "
                "nothing is learned while that goes on. The report says what overflows."
            )

    def _tell(self, message: str) -> None:
        self._keeper.tell("warning", "loss scale", message, self._loop.steps_seen or None)
