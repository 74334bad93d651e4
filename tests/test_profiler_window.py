"""The profiled window, on TensorFlow's real profiler and on one that fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import tensorflow as tf

from precscope.probes.profiler_window import ProfilerWindow
from precscope.probes.xplane import read_trace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_profiler_is_left_running() -> Iterator[None]:
    yield
    with pytest.raises(tf.errors.UnavailableError):
        tf.profiler.experimental.stop(save=False)


@tf.function
def step(x: Any) -> Any:
    with tf.name_scope("my_scope"):
        return tf.tanh(x)


def test_a_window_gives_a_trace_and_leaves_nothing() -> None:
    step(tf.ones(8))
    with ProfilerWindow(steps=1) as window:
        assert window.start()
        step(tf.ones(8)).numpy()
        path = window.stop()
        assert path is not None
        assert any(op.tf_op.endswith("my_scope/Tanh:Tanh") for op in read_trace(path).ops)
        assert window.stop() == path  # a second time changes nothing
        assert (window.reason, window.is_running) == (None, False)
        assert window.time_ns > 0
    assert not path.exists()
    assert not any(parent.exists() for parent in list(path.parents)[:4])
    assert window.path is None


def test_another_profiler_is_not_disturbed(tmp_path: Path) -> None:
    tf.profiler.experimental.start(str(tmp_path))
    window = ProfilerWindow()
    assert not window.start()
    assert window.stop() is None
    assert "another TensorFlow profiler is running" in str(window.reason)
    window.close()
    tf.profiler.experimental.stop()
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_a_session_of_the_profiler_server_is_not_disturbed(tmp_path: Path) -> None:
    internal = pytest.importorskip("tensorflow.python.profiler.internal._pywrap_profiler")
    session = internal.ProfilerSession()
    session.start(str(tmp_path), {})
    window = ProfilerWindow()
    assert not window.start()
    assert "another TensorFlow profiler is running" in str(window.reason)
    window.close()
    session.export_to_tb()
    assert list(tmp_path.rglob("*.xplane.pb"))
    # TensorFlow forgets a start that failed this way only when told to; the user's next one must work.
    tf.profiler.experimental.start(str(tmp_path))
    tf.profiler.experimental.stop(save=False)


def test_an_exception_in_training_stops_the_profiler() -> None:
    window = ProfilerWindow()
    window.start()
    with pytest.raises(ZeroDivisionError), window:
        step(tf.ones(1 // 0))
    assert not window.is_running


def test_a_profiler_that_the_user_stopped() -> None:
    with ProfilerWindow() as window:
        assert window.start()
        tf.profiler.experimental.stop(save=False)
        assert window.stop() is None
    assert "could not be stopped (UnavailableError" in str(window.reason)


class Broken:
    """A profiler whose start or stop fails, or that writes nothing."""

    def __init__(self, failing: str) -> None:
        self.failing = failing
        self.calls: list[str] = []

    def start(self, directory: str, options: Any) -> None:
        self._call("start")

    def stop(self, save: bool = True) -> None:
        self._call("stop")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.failing:
            raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("failing", "calls", "reason"),
    [
        (
            "start",
            ["start"],
            "could not be started (OSError: [Errno 28] No space left on device): op time was not recorded",
        ),
        ("stop", ["start", "stop"], "could not be stopped (OSError: [Errno 28] No space left on device)"),
        ("", ["start", "stop"], "wrote no trace"),
    ],
)
def test_a_failing_profiler_gives_a_reason(failing: str, calls: list[str], reason: str) -> None:
    profiler = Broken(failing)
    with ProfilerWindow(profiler=profiler) as window:
        window.start()
        assert window.stop() is None
        assert window.start() is False  # a window opens once
    assert profiler.calls == calls
    assert reason in str(window.reason)


def test_cost_is_the_time_inside_start_and_stop() -> None:
    ticks = iter([100, 130, 1000, 1500])
    with ProfilerWindow(profiler=Broken(""), clock_ns=lambda: next(ticks)) as window:
        window.start()
        window.stop()
        assert window.time_ns == 30 + 500
