"""Time, memory and results in the run directory: what is written comes back, and runs without them can be read."""

from __future__ import annotations

import math
import sqlite3
from typing import TYPE_CHECKING

import pytest

from precscope.device_records import DeviceInfo, DeviceSample
from precscope.op_records import OpRecord, ProfiledWindow
from precscope.reader import Run, open_run
from precscope.records import StepTimeRecord
from precscope.writer import RunWriter
from tests.core_fixtures import random_arrays, run_record, sample_record, tensor_record

if TYPE_CHECKING:
    from pathlib import Path

OPS = (
    OpRecord("a/MatMul", "MatMul", "gemm", "a", "forward", "float16", 900, 5, True, "gpu:0", False, ("b", "c")),
    OpRecord("Cast", "Cast", None, None, None, None, 100, 5, None, "gpu:0", True),
    OpRecord("input", None, "copy", None, "input", None, 50, 5, False, "gpu:0"),
)
DEVICES = (
    DeviceInfo("gpu:0", "gpu", "Card", 80, "GPU-1", "00:01.0", "9.0", "580.1", "13.0"),
    DeviceInfo("host", "host"),
)
LOOKS = (
    DeviceSample("gpu:0", 1.0, 10, 80, 5, 99, 40, 300_000, 60, 1980, 2619, ("sw_power_cap",)),
    DeviceSample("gpu:0", 1.1, throttle_reasons=()),
    DeviceSample("gpu:0", 1.2),
)
TABLES = ("step_times", "results", "profiled_windows", "op_times", "devices", "device_samples")


def write(path: Path, *step_times: StepTimeRecord) -> Run:
    writer = RunWriter.create(path, run_record())
    for record in step_times:
        writer.add_step_time(record)
    writer.add_op_times(ProfiledWindow(20, 5), OPS)
    writer.add_devices(DEVICES)
    writer.add_device_samples(LOOKS)
    writer.set_results({"loss": [0.5, math.nan, math.inf], "accuracy": [0.9]})
    writer.add_tensors([tensor_record(0)])
    writer.add_sample(sample_record(0, allocator_current_bytes=3, allocator_peak_bytes=9), *random_arrays(1, seed=0))
    writer.add_sample(sample_record(1), *random_arrays(1, seed=0))
    writer.close("finished")
    return open_run(path)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    stretch = StepTimeRecord(2, 9, 2_000_000, 32)
    run = write(tmp_path / "run", stretch)
    assert run.step_times == (stretch,)
    assert (run.profiled_window, run.op_times) == (ProfiledWindow(20, 5), OPS)
    assert [type(op.tensor_core) for op in run.op_times] == [bool, type(None), bool]
    assert (run.devices, run.device_samples) == (DEVICES, LOOKS)
    assert run.results["accuracy"] == [0.9]
    loss, not_a_number, infinite = run.results["loss"]
    assert (loss, infinite) == (0.5, math.inf)
    assert math.isnan(not_a_number)
    assert [sample.allocator_peak_bytes for sample in run.samples] == [9, None]
    assert run.samples[0].allocator_current_bytes == 3


def test_layer_times_are_of_one_step(tmp_path: Path) -> None:
    rows = {row.layer or row.part: row for row in write(tmp_path / "run").layer_times()}
    assert rows["a"].forward_ms == pytest.approx(900 / 5 / 1e6)
    assert rows["unattributed"].cast_ms == pytest.approx(100 / 5 / 1e6)
    assert rows["b"].total_ms == 0


def test_step_times_count_by_their_steps(tmp_path: Path) -> None:
    times = [StepTimeRecord(0, 3, 9_000_000, 32), StepTimeRecord(10, 50, 2_000_000, 32), StepTimeRecord(80, 4, 1, 32)]
    run = write(tmp_path / "run", *times)
    spread = run.step_time_ns()
    assert spread is not None
    assert (spread.median, spread.count) == (2_000_000, 3)
    assert run.examples_per_s() == pytest.approx(16_000)


@pytest.mark.parametrize("batches", [(None, None), (32, 64), (32, None)])
def test_no_rate_where_the_batch_is_not_one(tmp_path: Path, batches: tuple[int | None, ...]) -> None:
    run = write(tmp_path / "run", *(StepTimeRecord(10 * i, 5, 10, batch) for i, batch in enumerate(batches)))
    assert run.step_time_ns() is not None
    assert run.examples_per_s() is None


def test_a_run_without_these_tables_can_be_read(tmp_path: Path) -> None:
    write(tmp_path / "run")
    database = sqlite3.connect(tmp_path / "run" / "worker-0.sqlite")
    for table in TABLES:
        database.execute(f"DROP TABLE {table}")
    for column in ("allocator_current_bytes", "allocator_peak_bytes"):
        database.execute(f"ALTER TABLE samples DROP COLUMN {column}")
    database.commit()
    database.close()
    run = open_run(tmp_path / "run")
    assert (run.step_times, run.op_times, run.devices, run.device_samples) == ((), (), (), ())
    assert (run.profiled_window, run.layer_times(), run.results) == (None, (), {})
    assert (run.step_time_ns(), run.examples_per_s()) == (None, None)
    assert [(sample.step, sample.allocator_peak_bytes) for sample in run.samples] == [(0, None), (1, None)]
