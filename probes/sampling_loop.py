"""One sampled step: run it probed, read, write, measure what that cost, and fall back to the plain step on a failure.

Times are honest only between two moments at which the device has nothing left to do, so a sample waits for the device
before and after. The wait before is training time; everything after it, less one plain step, is the sample's cost.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from precscope.records import CostKind, CostRecord, StepTimeRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from precscope.probes.op_profile import OpProfile
    from precscope.probes.reading import Reading
    from precscope.probes.recorder import Recorder
    from precscope.sampling import Sampler

__all__ = ["NEVER", "Costs", "SampledStep", "SamplingLoop"]

#: Compares as later than any step.
NEVER = sys.maxsize
_LEAST_STEPS = 3  # a stretch of fewer plain steps tells little about their time


@dataclass(frozen=True)
class SampledStep:
    """What a sampled step gave: the step's number, what was read (None if no tap fired), and its time.

    `memory_bytes` is what the allocator had handed out before the step, then and at the peak; None where unknown.
    """

    step: int
    reading: Reading | None
    step_time_ns: int
    memory_bytes: tuple[int, int] | None = None


@dataclass
class Costs:
    """Count and total time by kind."""

    totals: dict[CostKind, list[int]] = field(default_factory=dict)

    def add(self, kind: CostKind, time_ns: int, count: int = 1) -> None:
        """Add to a kind of cost."""
        total = self.totals.setdefault(kind, [0, 0])
        total[0] += count
        total[1] += time_ns

    def records(self) -> tuple[CostRecord, ...]:
        """Return the costs as the run keeps them."""
        return tuple(CostRecord(kind, count, time_ns) for kind, (count, time_ns) in self.totals.items())


class SamplingLoop:
    """Counts train steps, decides with `sampler` which are probed, and runs those.

    Args:
        sampler: Chooses the next step.
        wait_for_device: Returns when the device has finished all that was queued.
        keep: Called with each sampled step; writes it.
        failed: Called with the exception of a probed step that failed, and whether the step itself was done by then;
            probes stay off from then on.
        clock_ns: A monotonic clock.

    Attributes:
        steps_seen: Train steps so far.
        next_step: The step at which something is due next, a sample, the profiler or a poll; `NEVER` where nothing is.
        next_sample: The step to sample next; `NEVER` where none is.
        next_poll: The step before which `poll` is called next; `NEVER` where it is not.
        poll: Looks at what a plain step leaves behind, without touching it; sets `next_poll`.
        costs: What PrecScope cost so far, by kind.
        batch: Examples in the usual batch; None where unknown.
        plain_step_ns: Mean time of the plain steps measured last; None before.
        wait_for_device: Returns when the device has finished all that was queued.
        profile: The window of plain steps under TensorFlow's profiler, if there is to be one.
        keep_step_time: Called with the time of each measured stretch of plain steps.
        read_memory: Returns the allocator's bytes now and at the peak.
        after_sample: Called after each sampled step that was kept; what it costs is no part of the sample's cost.
        dense_left: Steps that are still to be sampled one after the other, whatever that costs.
        place_in_epoch: Returns epoch and batch of a train step, from 0; None where there are no epochs.
    """

    def __init__(
        self,
        sampler: Sampler,
        wait_for_device: Callable[[], None],
        keep: Callable[[SampledStep], None],
        failed: Callable[[Exception, bool], None],
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.steps_seen = 0
        self.next_poll = NEVER
        self.poll: Callable[[], None] = lambda: None
        self.costs = Costs()
        self.batch: int | None = None
        self.plain_step_ns: float | None = None
        self.wait_for_device = wait_for_device
        self.profile: OpProfile | None = None
        self.keep_step_time: Callable[[StepTimeRecord], None] = lambda record: None
        self.read_memory: Callable[[], tuple[int, int] | None] = lambda: None
        self.after_sample: Callable[[SampledStep], None] = lambda sampled: None
        self.dense_left = 0
        self.place_in_epoch: Callable[[int], tuple[int, int] | None] = lambda step: None
        self._sampler = sampler
        self._keep = keep
        self._failed = failed
        self._clock_ns = clock_ns
        self._off = False
        self._paused = False
        self._window_start_ns: int | None = None
        self._window_first_step = 0

    @property
    def next_step(self) -> int:
        """The step at which a sample, the profiled window or a poll is due, or `NEVER`."""
        due = min(self.next_sample, self.next_poll)
        return due if self.profile is None else min(due, self.profile.next_step)

    @property
    def next_sample(self) -> int:
        """The step to sample next, or `NEVER`."""
        due = None if self._off or self._paused else self._sampler.next_step
        if self.dense_left and not self._off and not self._paused and self._sampler.is_in_window(self.steps_seen):
            return self.steps_seen
        return NEVER if due is None else due

    @property
    def is_sample_due(self) -> bool:
        """Whether the step at hand is to be sampled."""
        return self.steps_seen >= self.next_sample

    @property
    def is_paused(self) -> bool:
        """Whether sampling is held."""
        return self._paused

    def switch_off(self) -> None:
        """Sample nothing from now on."""
        self._off = True

    def pause(self, paused: bool) -> None:
        """Hold sampling, or go on with it."""
        self._paused = paused

    def skip(self) -> None:
        """Try the next step: the one at hand cannot be sampled, if it was due."""
        due = self._sampler.next_step  # a step that is due only because sampling is dense moves nothing
        if due is not None and self.steps_seen >= due and self.is_sample_due:
            self._sampler.skip(self.steps_seen)

    def count(self, steps: int = 1) -> None:
        """Count plain steps that were made."""
        self.steps_seen += steps
        if self.profile is not None:
            self.profile.after_step()

    def poll_when_due(self) -> None:
        """Poll before the step at hand, unless it is sampled: a sample ends with a look of its own."""
        if self.steps_seen >= self.next_poll and not self.is_sample_due:
            self.poll()

    def is_profiled(self, steps: int = 1, left: int | None = None) -> bool:
        """Tell whether the step at hand lies in the profiled window; see `OpProfile.takes`."""
        return self.profile is not None and self.profile.takes(steps, left)

    def new_epoch(self) -> None:
        """Forget the stretch of steps that was being measured: it ended where the last epoch did."""
        self._window_start_ns = None
        if self.profile is not None:
            self.profile.new_epoch()

    def open_window(self, first_step: int | None = None) -> None:
        """Begin to measure plain steps anew: whatever lies before (validation, compiling) is no train step."""
        self.wait_for_device()
        self._window_start_ns = self._clock_ns()
        self._window_first_step = self.steps_seen if first_step is None else first_step

    def run(
        self,
        prepare: Callable[[], tuple[Recorder, Callable[[], Any]]],
        plain: Callable[[], Any],
        steps: int = 1,
        count: bool = True,
    ) -> Any:
        """Run `steps` train steps probed and keep what they gave; return what the step returned.

        Whatever fails here is not the training's: probes are switched off, and the step is run plain.

        Args:
            prepare: Returns what the taps write to, and what runs the steps with taps.
            plain: Runs the steps without, should that fail.
            steps: How many train steps one call makes.
            count: Whether to count them here; a custom loop counts its steps itself.
        """
        self.measure_plain_steps()
        memory_bytes = self.read_memory()
        start_ns = self._clock_ns()
        first_step = self.steps_seen
        try:
            recorder, probed = prepare()
        except Exception as error:
            return self._run_plain(error, plain, steps, count)
        traces = recorder.traces
        try:
            recorder.prepare()
            result = probed()
            launched_ns = self._clock_ns()
            self.wait_for_device()
        except StopIteration:  # Keras' way to say that the epoch is over
            recorder.cancel()
            raise
        except Exception as error:
            recorder.cancel()
            # The user's data failed or ended, not the probes.
            if "IteratorGetNext" in str(error) or type(error).__name__ == "OutOfRangeError":
                raise
            return self._run_plain(error, plain, steps, count)
        times_ns = (start_ns, launched_ns, self._clock_ns())
        self.steps_seen += steps if count else 0
        try:
            self._read(recorder, first_step, steps, recorder.traces > traces, times_ns, memory_bytes)
        except Exception as error:
            self.switch_off()
            self._failed(error, True)
        self.open_window(first_step + steps)
        return result

    def _read(
        self,
        recorder: Recorder,
        first_step: int,
        steps: int,
        compiled: bool,
        times_ns: tuple[int, int, int],
        memory_bytes: tuple[int, int] | None,
    ) -> None:
        """Read and keep what the steps that just ran gave, and note what that cost."""
        start_ns, _, stepped_ns = times_ns
        is_dense = self.dense_left > 0
        self.dense_left = max(self.dense_left - 1, 0)
        reading = recorder.read()
        read_ns = self._clock_ns()
        sampled = SampledStep(first_step + steps - 1, reading, stepped_ns - start_ns, memory_bytes)
        self._keep(sampled)
        self._account(sampled.step, steps, (compiled, is_dense), (*times_ns, read_ns, self._clock_ns()))
        self.after_sample(sampled)

    def _run_plain(self, error: Exception, plain: Callable[[], Any], steps: int, count: bool) -> Any:
        """Go on without probes after `error`; if it is the training's own, the plain step raises it."""
        self.switch_off()
        self._failed(error, False)
        first_step = self.steps_seen
        result = plain()
        self.steps_seen += steps if count else 0
        self.open_window(first_step + steps)
        return result

    def measure_plain_steps(self) -> None:
        """Measure the stretch of plain steps that ends here."""
        self.wait_for_device()
        first_step, steps = self._window_first_step, self.steps_seen - self._window_first_step
        if self._window_start_ns is not None and steps > 0:
            self.plain_step_ns = (self._clock_ns() - self._window_start_ns) / steps
            if steps >= _LEAST_STEPS:
                self.keep_step_time(StepTimeRecord(first_step, steps, round(self.plain_step_ns), self.batch))

    def _account(self, step: int, steps: int, how: tuple[bool, bool], times_ns: tuple[int, ...]) -> None:
        (compiled, is_dense), (start_ns, launched_ns, stepped_ns, read_ns, written_ns) = how, times_ns
        plain_ns = round((self.plain_step_ns or 0) * steps)
        # The next step finds the device idle, until it is launched. Otherwise a host that launches faster than its
        # device works is ahead of it. Where it is not (on a CPU the launch is the step), nothing is lost.
        idle_ns = 0 if compiled else min(launched_ns - start_ns, stepped_ns - launched_ns)
        if is_dense and not compiled:
            self.costs.add("dense", max(written_ns - start_ns - plain_ns, 0))
        else:
            self.costs.add("compile" if compiled else "step", max(stepped_ns - start_ns - plain_ns, 0))
            self.costs.add("read", read_ns - stepped_ns)
            self.costs.add("write", written_ns - read_ns)
            self.costs.add("idle", idle_ns)
        known = not compiled and self.plain_step_ns is not None
        cost_ns = written_ns - start_ns - plain_ns + idle_ns if known else None
        self._sampler.sampled(step, cost_ns, self.plain_step_ns)
