"""Where the profiled window is put among samples and epochs, and what becomes of failures; the profiler is a fake."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from precscope.errors import PrecScopeError
from precscope.op_records import OpRecord, ProfiledWindow
from precscope.probes.op_profile import OpProfile
from precscope.probes.sampling_loop import NEVER

if TYPE_CHECKING:
    from collections.abc import Collection

OPS = (OpRecord("op", None, None, None, None, None, 1, 1, None, "gpu:0"),)


class FakeWindow:
    """A profiler that gives a trace, unless there is a reason why not."""

    def __init__(self, steps: int, reason: str | None) -> None:
        self.steps = steps
        self.reason = reason
        self.time_ns = 7
        self.is_closed = False

    def start(self) -> bool:
        return self.reason is None

    def stop(self) -> str:
        return "trace"

    def close(self) -> None:
        self.is_closed = True


class FakeTraining:
    """Makes steps as a train function does, in the place of `SamplingLoop`; a plain step takes 10 ns."""

    def __init__(
        self,
        samples: Collection[int] = (),
        epoch: int | None = None,
        *,
        steps: int = 5,
        steps_per_call: int = 1,
        is_length_known: bool = True,
        reason: str | None = None,
        error: Exception | None = None,
    ) -> None:
        self.is_paused, self.steps_seen, self.plain_step_ns, self.now_ns = False, 0, 10.0, 0
        self.costs = self
        self.profiled: list[int] = []
        self.kept: list[ProfiledWindow] = []
        self.said: list[tuple[str, bool]] = []
        self.cost_ns: list[int] = []
        self.windows: list[FakeWindow] = []
        self._samples, self._epoch, self._steps_per_call = sorted(samples), epoch, steps_per_call
        self._is_length_known, self._reason, self._error = is_length_known, reason, error
        loop: Any = self
        self.profile = OpProfile(
            loop, steps, 20, self._parse, self._keep, self._tell, self._new_window, lambda: self.now_ns
        )

    def run(self, until: int) -> FakeTraining:
        while self.steps_seen < until:
            if self._epoch and self.steps_seen % self._epoch == 0:
                self.profile.new_epoch()
            steps = self._steps_per_call
            if self.steps_seen >= self.profile.next_step and self.profile.takes(steps, self._left()):
                self.profiled += range(self.steps_seen, self.steps_seen + steps)
                self.now_ns += 3 * steps  # the profiler slows steps down
            self.now_ns += 10 * steps
            self.steps_seen += steps
            self.profile.after_step()
        return self

    def _left(self) -> int | None:
        if self._epoch is None or not self._is_length_known:
            return None
        return max(self._epoch - self._steps_per_call - self.steps_seen % self._epoch, 0)

    # What the profile calls.

    @property
    def next_sample(self) -> int:
        return next((step for step in self._samples if step >= self.steps_seen), NEVER)

    def add(self, kind: str, time_ns: int) -> None:
        assert kind == "profiler"
        self.cost_ns.append(time_ns)

    def measure_plain_steps(self) -> None:
        pass

    def wait_for_device(self) -> None:
        pass

    def open_window(self) -> None:
        pass

    def _parse(self, path: Any) -> tuple[OpRecord, ...]:
        assert path == "trace"
        self.now_ns += 100
        if self._error is not None:
            raise self._error
        return OPS

    def _keep(self, window: ProfiledWindow, records: tuple[OpRecord, ...]) -> None:
        assert records == OPS
        self.kept.append(window)

    def _tell(self, message: str, failed: bool) -> None:
        self.said.append((message, failed))

    def _new_window(self, steps: int) -> Any:
        self.windows.append(FakeWindow(steps, self._reason))
        return self.windows[-1]


@pytest.mark.parametrize(
    ("training", "profiled"),
    [
        (FakeTraining(), range(20, 25)),
        (FakeTraining(steps=1), range(20, 21)),
        (FakeTraining(samples=[25]), range(20, 25)),
        (FakeTraining(samples=[24]), range(25, 30)),
        (FakeTraining(samples=[20, 30]), range(21, 26)),
        (FakeTraining(samples=range(0, 90, 4)), range(25, 28)),  # three steps are all the room there is
        (FakeTraining(epoch=30), range(20, 25)),
        (FakeTraining(epoch=25), range(25, 30)),  # the epoch's last step may be smaller
        (FakeTraining(epoch=26), range(20, 25)),
        (FakeTraining(epoch=4), range(28, 31)),
        (FakeTraining(epoch=22, samples=[23]), range(24, 29)),
        (FakeTraining(steps_per_call=2), range(20, 26)),
        (FakeTraining(steps_per_call=2, samples=[26]), range(20, 26)),
        (FakeTraining(steps_per_call=2, samples=[25]), range(26, 32)),
    ],
)
def test_the_window_lies_between_samples_and_inside_an_epoch(training: FakeTraining, profiled: range) -> None:
    training.run(100).profile.close()
    assert training.profiled == list(profiled)
    assert training.kept == [ProfiledWindow(profiled.start, len(profiled))]
    assert training.said == []
    assert training.profile.next_step == NEVER
    assert all(window.is_closed for window in training.windows)


def test_without_steps_there_is_no_window() -> None:
    training = FakeTraining(steps=0).run(100)
    training.profile.close()
    assert (training.windows, training.said, training.profiled) == ([], [], [])


def test_a_run_that_ends_before_the_window_has_nothing_to_say() -> None:
    training = FakeTraining().run(20)
    training.profile.close()
    assert (training.windows, training.said) == ([], [])


def test_a_run_that_ends_inside_the_window() -> None:
    training = FakeTraining().run(22)
    training.profile.close()
    assert training.kept == []
    assert training.said == [
        ("the run ended inside the profiled window (2 of 5 steps): op time was not recorded", False)
    ]
    assert training.windows[0].is_closed


def test_a_run_whose_every_step_is_sampled() -> None:
    training = FakeTraining(samples=range(100)).run(100)
    training.profile.close()
    assert training.said == [
        ("no stretch of steps without samples was left to profile: op time was not recorded", False)
    ]


def test_a_window_that_an_epoch_of_unknown_length_cut_off_begins_anew() -> None:
    training = FakeTraining(epoch=22, is_length_known=False).run(60)
    assert training.kept == [ProfiledWindow(22, 5)]
    assert len(training.windows) == 2


def test_epochs_of_unknown_length_that_are_too_short() -> None:
    training = FakeTraining(epoch=2, is_length_known=False).run(60)
    training.profile.close()
    assert training.kept == []
    assert training.said == [
        ("epochs ended inside the profiled window again and again: op time was not recorded", False)
    ]
    assert all(window.is_closed for window in training.windows)


def test_a_pause_holds_the_window_back() -> None:
    training = FakeTraining().run(10)
    training.is_paused = True
    training.run(40)
    training.is_paused = False
    training.run(60)
    assert training.kept == [ProfiledWindow(40, 5)]


def test_cost_is_what_the_window_took_beyond_its_plain_steps() -> None:
    assert FakeTraining().run(40).cost_ns == [5 * 3 + 100]


def test_a_profiler_that_does_not_start_is_told_and_not_tried_again() -> None:
    training = FakeTraining(reason="it is busy").run(100)
    training.profile.close()
    assert training.said == [("it is busy", True)]
    assert [window.is_closed for window in training.windows] == [True]
    assert training.cost_ns == [7]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PrecScopeError("The trace holds no ops."), "op time was not recorded: The trace holds no ops."),
        (
            KeyError("plane"),
            "op time was not recorded, its trace could not be read: KeyError: 'plane' (op_profile.py:",
        ),
    ],
)
def test_a_trace_that_cannot_be_read_is_told(error: Exception, message: str) -> None:
    training = FakeTraining(error=error).run(100)
    ((said, went_wrong),) = training.said
    assert said.startswith(message)
    assert went_wrong
    assert training.kept == []
    assert training.windows[0].is_closed
