"""One window of plain train steps under TensorFlow's profiler: when it opens and closes, and what becomes of its trace.

The window lies between samples, after warm-up and inside one epoch, so that it holds train steps as they are without
PrecScope. Where it does not fit it moves on, and in the end takes what room there is.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from precscope.error_text import failure_in_a_line
from precscope.errors import PrecScopeError
from precscope.op_records import OpRecord, ProfiledWindow
from precscope.probes.internals.layer_tree import walk_layers
from precscope.probes.internals.optimizers import inner_optimizer
from precscope.probes.layer_paths import paths_of_layers
from precscope.probes.op_scopes import KERAS_OPTIMIZERS
from precscope.probes.op_time import op_records, read_trace
from precscope.probes.profiler_window import ProfilerWindow
from precscope.probes.sampling_loop import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from precscope.probes.sampling_loop import SamplingLoop

__all__ = ["OpProfile", "model_op_records"]

_MOVES = 2  # after so many the window is shortened instead
_RESTARTS = 2


class OpProfile:
    """Profiles a few plain steps, once.

    Args:
        loop: Counts the steps, and knows which are sampled.
        steps: How many steps the window holds; 0 for no window.
        start: The first step that it may hold.
        parse: Reads a trace.
        keep: Takes the window and what was read from its trace.
        tell: Takes the reason why there is nothing, and whether something went wrong.
        new_window: Makes the profiler's window; replaced in tests.
        clock_ns: A monotonic clock.

    Attributes:
        next_step: The step at which `takes` is to be asked: 0 while the window is open, `NEVER` once it was.
    """

    def __init__(
        self,
        loop: SamplingLoop,
        steps: int,
        start: int,
        parse: Callable[[Path], tuple[OpRecord, ...]],
        keep: Callable[[ProfiledWindow, tuple[OpRecord, ...]], None],
        tell: Callable[[str, bool], None],
        new_window: Callable[[int], ProfilerWindow] = ProfilerWindow,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.next_step = start if steps else NEVER
        self._loop = loop
        self._steps = steps
        self._start = start
        self._parse = parse
        self._keep = keep
        self._tell = tell
        self._new_window = new_window
        self._clock_ns = clock_ns
        self._moves = self._restarts = 0
        self._window: ProfilerWindow | None = None
        self._first_step = 0
        self._began_ns = 0

    def takes(self, steps: int = 1, left: int | None = None) -> bool:
        """Open the window where it is due and fits; tell whether the step at hand lies in it.

        Args:
            steps: How many train steps the next call makes.
            left: How many steps of usual size are left in the epoch; None where that is unknown.
        """
        if self._window is None and not self._loop.is_paused and self._loop.steps_seen >= self.next_step:
            self._open_or_move(steps, left)
        return self._window is not None

    def after_step(self) -> None:
        """Close the window and read its trace after its last step."""
        if self._window is not None and self._loop.steps_seen - self._first_step >= self._window.steps:
            self._finish(self._window)

    def new_epoch(self) -> None:
        """Begin anew where an epoch ended inside the window: validation and callbacks are no train steps."""
        if self._window is None:
            return
        self._drop()
        if self._restarts < _RESTARTS:
            self._restarts += 1
            self.next_step = self._loop.steps_seen
        else:
            self._tell("epochs ended inside the profiled window again and again: op time was not recorded", False)

    def close(self) -> None:
        """End the window with the session."""
        self.after_step()
        if self._window is not None:
            made = self._loop.steps_seen - self._first_step
            planned = self._window.steps
            self._drop()
            self._tell(
                f"the run ended inside the profiled window ({made} of {planned} steps): op time was not recorded", False
            )
        elif self.next_step != NEVER and self._loop.steps_seen > self._start:
            self._tell("no stretch of steps without samples was left to profile: op time was not recorded", False)

    def _open_or_move(self, steps: int, left: int | None) -> None:
        loop = self._loop
        gap = loop.next_sample - loop.steps_seen
        room = gap if left is None else min(gap, left)
        room -= room % steps
        wanted = -(-self._steps // steps) * steps
        if room >= wanted or (room > 0 and self._moves >= _MOVES):
            self._open(min(room, wanted))
        else:
            self._moves += 1
            # Behind the epoch's last step, which `left` does not count, or behind the sample.
            self.next_step = loop.steps_seen + (left + steps if left is not None and left < gap else max(gap, 0) + 1)

    def _open(self, steps: int) -> None:
        self._loop.measure_plain_steps()
        self._first_step, self._began_ns = self._loop.steps_seen, self._clock_ns()
        window = self._new_window(steps)
        if window.start():
            self._window, self.next_step = window, 0
        else:
            window.close()
            self.next_step = NEVER
            self._account(window.time_ns)
            self._loop.open_window()
            self._tell(str(window.reason), True)

    def _finish(self, window: ProfilerWindow) -> None:
        steps = self._loop.steps_seen - self._first_step
        self._window, self.next_step = None, NEVER
        try:
            self._loop.wait_for_device()
            path = window.stop()
            if path is None:
                self._tell(str(window.reason), True)
            else:
                self._keep(ProfiledWindow(self._first_step, steps), self._parse(path))
        except PrecScopeError as error:
            self._tell(f"op time was not recorded: {error}", True)
        except Exception as error:  # a trace is never worth a training run
            self._tell(f"op time was not recorded, its trace could not be read: {failure_in_a_line(error)}", True)
        finally:
            window.close()
            plain_ns = self._loop.plain_step_ns
            elapsed_ns = self._clock_ns() - self._began_ns
            self._account(elapsed_ns - round(plain_ns * steps) if plain_ns is not None else window.time_ns)
            self._loop.open_window()

    def _drop(self) -> None:
        assert self._window is not None
        window, self._window, self.next_step = self._window, None, NEVER
        window.close()
        self._account(window.time_ns)

    def _account(self, time_ns: int) -> None:
        self._loop.costs.add("profiler", max(time_ns, 0))


def model_op_records(path: Path, model: Any, optimizer: Any) -> tuple[OpRecord, ...]:
    """Return the op records of a trace of `model` trained with `optimizer`.

    Raises:
        PrecScopeError: The file is no trace, is cut short, or holds no ops.
    """
    names = {optimizer.name, inner_optimizer(optimizer).name}
    layers = paths_of_layers(walk_layers(model))
    return op_records(read_trace(path), layers, KERAS_OPTIMIZERS | names)
