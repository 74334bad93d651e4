"""Time, memory and results of real trainings on a CPU, read back from the run."""

from __future__ import annotations

import threading
import warnings
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import keras
import pytest
import tensorflow as tf

import precscope
from precscope.database import FIRST_ROW, open_database, select_after
from precscope.device_records import DeviceInfo, DeviceSample
from precscope.probes import environment, measurements
from precscope.probes.keeper import PrecScopeWarning
from precscope.probes.measurements import DeviceRecording
from precscope.reader import open_run
from precscope.records import ProgressRecord
from precscope.reports.time_view import time_view
from precscope.rundir import worker_files
from precscope.writer import RunWriter
from tests.core_fixtures import run_record
from tests.models import data, mlp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from precscope.reader import Run

#: Samples of little work, so that compiling them takes little time; none out of turn, where the loss scale falls.
SMALL: dict[str, Any] = {"reference": False, "layers": "head", "gradients": False, "weights": False, "dense_steps": 0}

#: None at all, where they do not matter.
NO_SAMPLES: dict[str, Any] = {"start": 10_000}
UNSAMPLED = pytest.mark.filterwarnings("ignore:PrecScope. nothing was recorded")


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("precscope")]
    with pytest.raises(tf.errors.UnavailableError):
        tf.profiler.experimental.stop(save=False)


def fit(path: Path, *, epochs: int = 2, steps: int = 24, callbacks: Any = (), jit: bool = False, **options: Any) -> Run:
    """Train the classifier with `steps` steps an epoch, the last one smaller, and validation in between."""
    model = mlp("mixed_float16", jit_compile=jit)
    x, y = data(16 * steps - 4)
    with precscope.profile(model, path, **{**SMALL, **options}):
        model.fit(
            x, y, batch_size=16, epochs=epochs, verbose=0, validation_data=(x[:32], y[:32]), callbacks=[*callbacks]
        )
    return open_run(path)


def profiled_steps(run: Run) -> set[int]:
    window = run.profiled_window
    assert window is not None
    return set(range(window.first_step, window.first_step + window.steps))


def check_op_times(run: Run) -> None:
    """Check that the window holds whole plain steps, and each layer's work in both directions."""
    window = run.profiled_window
    assert window is not None
    assert not profiled_steps(run) & {sample.step for sample in run.samples}
    rows = {row.layer: row for row in run.layer_times()}
    for layer in ("hidden", "head"):
        assert rows[layer].forward_ms, layer
        assert rows[layer].backward_ms, layer
    assert "optimizer" in {row.part for row in run.layer_times()}
    assert not [op for op in run.op_times if op.direction == "precscope"]


def check_each_step_counts_once(run: Run) -> None:
    products = [op for op in run.op_times if op.layer == "hidden" and "MatMul" in str(op.op_type)]
    assert sum(op.count for op in products if op.direction == "forward") == len(profiled_steps(run))


@pytest.mark.parametrize("jit", [False, True], ids=["no_xla", "xla"])
def test_a_fit_records_op_times_step_times_devices_and_results(tmp_path: Path, jit: bool) -> None:
    run = fit(tmp_path / "run", jit=jit)
    check_op_times(run)
    assert run.profiled_window is not None
    assert run.profiled_window.steps == 5
    assert run.profiled_window.first_step >= 20
    assert "input" in {row.part for row in run.layer_times()}
    if not jit:
        check_each_step_counts_once(run)
    assert run.step_times
    for stretch in run.step_times:
        steps = set(range(stretch.first_step, stretch.first_step + stretch.steps))
        assert stretch.steps >= 3
        assert stretch.batch == 16
        assert stretch.mean_time_ns > 0
        assert not steps & (profiled_steps(run) | {sample.step for sample in run.samples})
        assert not {23, 24} <= steps  # validation lies between the epochs
    time_ns, rate = run.step_time_ns(), run.examples_per_s()
    assert time_ns is not None
    assert rate == pytest.approx(16e9 / time_ns.median)
    assert [device.id for device in run.devices] == ["host"]
    assert {sample.device for sample in run.device_samples} == {"host"}
    assert all(sample.process_memory_bytes for sample in run.device_samples)
    assert set(run.results) == {"loss", "val_loss"}
    assert [len(values) for values in run.results.values()] == [2, 2]
    costs = {cost.kind: cost for cost in run.costs}
    assert costs["profiler"].count == 1
    assert costs["device"].count == len(run.device_samples)
    assert costs["device"].time_ns > 0
    assert told(run) == []


@UNSAMPLED
def test_epochs_that_are_shorter_than_the_window_shorten_it(tmp_path: Path) -> None:
    run = fit(tmp_path / "run", epochs=6, steps=4, profile_start=6, **NO_SAMPLES)
    check_op_times(run)
    assert profiled_steps(run) in [{first, first + 1, first + 2} for first in (8, 12, 16)]


def test_samples_are_kept_clear_of(tmp_path: Path) -> None:
    run = fit(tmp_path / "run", every=4, profile_start=5)
    check_op_times(run)
    assert len(profiled_steps(run)) == 3


def test_a_run_that_ends_before_the_window_says_so_without_a_notice(tmp_path: Path) -> None:
    run = fit(tmp_path / "run", epochs=1, steps=6)
    assert (run.profiled_window, run.op_times, run.layer_times()) == (None, (), ())
    assert told(run) == []
    assert ops_row(run) == "– not measured: the run ended before step 20"


@UNSAMPLED
def test_profiler_and_devices_can_be_switched_off(tmp_path: Path) -> None:
    run = fit(tmp_path / "run", profile_steps=0, device_interval_s=0, **NO_SAMPLES)
    assert (run.profiled_window, run.devices, run.device_samples) == (None, (), ())
    assert not {"profiler", "device"} & {cost.kind for cost in run.costs}
    assert ops_row(run) == "– not measured: profile_steps is 0"
    view = time_view(run)
    assert view is not None
    assert dict(view.rows)["memory"] == "– not measured: device_interval_s is 0"


def told(run: Run) -> list[str]:
    """Return the notices, without the one that depends on how busy the machine is: it has a test with a fake clock."""
    return [notice.message for notice in run.notices if "sampled less often" not in notice.message]


def ops_row(run: Run) -> str:
    view = time_view(run)
    assert view is not None
    return dict(view.rows)["ops"]


class Gpu:
    """A GPU that is always in the same state."""

    def __init__(self) -> None:
        self.info = DeviceInfo("gpu:0", "gpu", "Card", 80)

    def read(self, time_unix_s: float) -> DeviceSample:
        return DeviceSample("gpu:0", time_unix_s, memory_used_bytes=50, process_memory_bytes=40)


@contextmanager
def one_gpu(notice: Any) -> Iterator[tuple[Gpu, ...]]:
    notice("gpu:0: power is not known: Not Supported")
    yield (Gpu(),)


def test_on_a_gpu_its_state_and_the_allocators_account_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorFlow is told of a GPU that is not there; what it would say of its memory is made up."""
    memory = iter([(100, 900), (110, 2000)])
    monkeypatch.setattr(measurements, "open_devices", one_gpu)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind="CPU": [kind])
    monkeypatch.setattr(measurements, "AllocatorMemory", lambda device, notice: SimpleNamespace(read=memory.__next__))
    monkeypatch.setattr(environment, "_gpu", lambda device: {"name": "Card"})
    monkeypatch.setattr(environment, "describe_gpus", lambda: (DeviceInfo("gpu:0", "gpu", memory_total_bytes=80),))
    model = mlp("mixed_float16")
    x, y = data(16)
    with precscope.profile(model, tmp_path / "run", **SMALL, every=4, profile_steps=0):
        for _ in range(6):
            model.train_on_batch(x, y)
    run = open_run(tmp_path / "run")
    assert run.devices == (Gpu().info,)
    assert {(sample.device, sample.memory_used_bytes) for sample in run.device_samples} == {("gpu:0", 50)}
    assert [(s.step, s.allocator_current_bytes, s.allocator_peak_bytes) for s in run.samples] == [
        (1, 100, 900),
        (4, 110, 2000),
    ]
    assert run.record.hardware["gpus"] == [{"name": "Card", "memory_bytes": 80, "uuid": None}]
    assert told(run) == ["gpu:0: power is not known: Not Supported"]


class FailAt(keras.callbacks.Callback):
    """Raises at the end of a batch."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == self.batch:
            raise RuntimeError("the disk of the data is full")


def test_an_exception_inside_the_window(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the disk of the data is full"):
        fit(tmp_path / "run", callbacks=[FailAt(7)], profile_start=5, **NO_SAMPLES)
    run = open_run(tmp_path / "run")
    assert run.status == "failed"
    assert run.profiled_window is None
    assert len(run.device_samples) >= 1
    assert [n.message for n in run.notices if n.source == "profiler"] == [
        "the run ended inside the profiled window (3 of 5 steps): op time was not recorded"
    ]


@UNSAMPLED
def test_the_users_own_profiler_goes_on(tmp_path: Path) -> None:
    tf.profiler.experimental.start(str(tmp_path / "mine"))
    with pytest.warns(PrecScopeWarning, match="another TensorFlow profiler is running") as caught:
        run = fit(tmp_path / "run", profile_start=5, **NO_SAMPLES)
    tf.profiler.experimental.stop()
    assert len([item for item in caught if "another TensorFlow profiler" in str(item.message)]) == 1
    assert list((tmp_path / "mine").rglob("*.xplane.pb"))
    assert run.profiled_window is None
    assert "another TensorFlow profiler is running" in ops_row(run)


def test_train_on_batch(tmp_path: Path) -> None:
    model = mlp("mixed_float16")
    x, y = data(16)
    with precscope.profile(model, tmp_path / "run", **SMALL, profile_start=5, every=20):
        for _ in range(15):
            model.train_on_batch(x, y)
    run = open_run(tmp_path / "run")
    check_op_times(run)
    assert profiled_steps(run) == {5, 6, 7, 8, 9}
    assert run.results == {}


@pytest.mark.parametrize("tells", [True, False], ids=["session.step", "no session.step"])
def test_a_custom_loop(tmp_path: Path, tells: bool) -> None:
    model = mlp("mixed_float16")
    x, y = data(16)
    loss_of = keras.losses.SparseCategoricalCrossentropy()

    @tf.function
    def train_step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
            scaled = model.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, model.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    with precscope.profile(model, tmp_path / "run", **SMALL, profile_start=5, every=20) as session:
        step = session.instrument(train_step)
        for _ in range(15):
            step(x, y)
            if tells:
                session.step()
    run = open_run(tmp_path / "run")
    rows = {row.layer: row for row in run.layer_times()}
    assert profiled_steps(run) == {5, 6, 7, 8, 9}
    assert rows["hidden"].forward_ms
    assert rows["head"].backward_ms
    assert run.step_times[0].batch is None
    assert run.examples_per_s() is None


def test_nothing_is_profiled_while_the_session_is_paused(tmp_path: Path) -> None:
    model = mlp("mixed_float16")
    x, y = data(16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrecScopeWarning)
        with precscope.profile(model, tmp_path / "run", **SMALL, profile_start=2, every=100, start=50) as session:
            model.train_on_batch(x, y)
            session.pause()
            for _ in range(8):
                model.train_on_batch(x, y)
            session.resume()
            for _ in range(8):
                model.train_on_batch(x, y)
    assert min(profiled_steps(open_run(tmp_path / "run"))) >= 9


def test_many_device_samples_are_thinned_evenly(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path / "run", run_record())
    said: list[str] = []
    keeper: Any = SimpleNamespace(write=lambda action: action(writer))
    steps = iter(range(100, 1000))
    recording = DeviceRecording(keeper, said.append, most=20, steps_seen=lambda: next(steps))
    looks = [tuple(DeviceSample(id, float(look)) for id in ("gpu:0", "gpu:1")) for look in range(64)]
    for first in range(0, 64, 4):
        recording.keep([sample for look in looks[first : first + 4] for sample in look])
    writer.close("finished")
    (worker,) = worker_files(tmp_path / "run")
    with open_database(worker) as connection:
        progress, _ = select_after(connection, ProgressRecord, FIRST_ROW)
    assert progress == (ProgressRecord(115, 63.0),)  # of the last of 16 batches, in place of the others
    samples = open_run(tmp_path / "run").device_samples
    assert [sample.time_unix_s for sample in samples if sample.device == "gpu:0"] == list(range(0, 64, 8))
    assert [sample.time_unix_s for sample in samples if sample.device == "gpu:1"] == list(range(0, 64, 8))
    assert len(set(said)) == 1
    assert "more than 20 rows" in said[0]
