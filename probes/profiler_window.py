"""Runs TensorFlow's profiler over a few train steps. It never stops training: what goes wrong becomes `reason`."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

import tensorflow as tf

from precscope.error_text import error_in_a_line
from precscope.probes.internals.profiler import holds_no_session

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ProfilerWindow"]

#: TensorFlow's defaults: ops and kernels, no Python calls.
_OPTIONS = tf.profiler.experimental.ProfilerOptions(host_tracer_level=2, python_tracer_level=0, device_tracer_level=1)
_BUSY = (
    "another TensorFlow profiler is running (your own, or the TensorBoard callback's), and there can be only one: op "
    "time was not recorded"
)


class ProfilerWindow:
    """One profiled window: start it before a step, stop it some steps later, read the trace, close it.

    Leaving its `with` block, or `close`, stops a running profiler and removes the trace.

    Attributes:
        steps: How many steps the window is meant to hold; whoever counts steps stops it then.
        reason: Why there is no trace, or None as long as nothing went wrong.
        path: The trace, once it was stopped well and until it is closed.
        time_ns: What starting, stopping and writing the trace cost.
        is_running: Whether the profiler runs.
    """

    def __init__(
        self,
        steps: int = 5,
        profiler: Any = tf.profiler.experimental,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.steps = steps
        self.reason: str | None = None
        self.path: Path | None = None
        self.time_ns = 0
        self.is_running = False
        self._profiler = profiler
        self._clock_ns = clock_ns
        self._directory: TemporaryDirectory[str] | None = None

    def start(self) -> bool:
        """Start the profiler; return whether it runs. A window opens once."""
        if self._directory is None:
            self._attempt("could not be started", self._start)
        return self.is_running

    def stop(self) -> Path | None:
        """Stop the profiler and return the trace's path, or None where `reason` says why there is none.

        Work that runs asynchronously belongs to the window only if it has finished: wait for the step's result first.
        """
        if self.is_running:
            self.is_running = False
            self._attempt("could not be stopped", self._stop)
        return self.path

    def close(self) -> None:
        """Stop where it still runs, and remove the trace."""
        self.stop()
        self.path = None
        if self._directory is not None:
            self._directory.cleanup()

    def __enter__(self) -> Self:
        """Return the window, not yet started."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _attempt(self, what_failed: str, action: Callable[[], None]) -> None:
        begin_ns = self._clock_ns()
        try:
            action()
        except Exception as error:  # a profiler is never worth a training run
            self.reason = f"TensorFlow's profiler {what_failed} ({error_in_a_line(error)}): op time was not recorded"
        finally:
            self.time_ns += self._clock_ns() - begin_ns

    def _start(self) -> None:
        self._directory = TemporaryDirectory(prefix="precscope-profile-", ignore_cleanup_errors=True)
        idle = holds_no_session()
        try:
            self._profiler.start(self._directory.name, _OPTIONS)
        except tf.errors.AlreadyExistsError:
            self.reason = _BUSY
            if idle:  # a session of the profiler server's; start() left the failed one behind, which would block yours
                self._profiler.stop(save=False)
        else:
            self.is_running = True

    def _stop(self) -> None:
        assert self._directory is not None
        self._profiler.stop()
        self.path = next(Path(self._directory.name).glob("plugins/profile/*/*.xplane.pb"), None)
        if self.path is None:
            self.reason = "TensorFlow's profiler wrote no trace: op time was not recorded"
