"""Several workers' files read as one run: shares and ranges over all, also where one is missing or damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from precscope.device_records import DeviceInfo
from precscope.errors import RunDirectoryError
from precscope.merged_scalars import merge_scalars
from precscope.reader import open_run
from precscope.records import LossScaleRecord, NoticeRecord, StepTimeRecord
from precscope.replica_records import ReplicaRecord, ReplicaSample
from precscope.statistics import describe
from precscope.writer import RunWriter
from tests.core_fixtures import arrays_of, layer_record, run_record, sample_record, tensor_record

if TYPE_CHECKING:
    from pathlib import Path

INF, NAN = float("inf"), float("nan")
#: One tensor's values on three workers. The middle one has no finite value, the last no value that is not zero.
VALUES = [
    np.array([1.0, -2.0, 0.0, 6e-8], np.float16),
    np.array([INF, NAN], np.float16),
    np.array([0.0, 0.0, -0.0], np.float16),
]


def begin(path: Path, worker: int, workers: int, layers: tuple[str, ...] = ("dense",)) -> RunWriter:
    record = run_record(model={"workers": workers, "replicas": workers})
    writer = RunWriter.create(path, record, worker=worker)
    writer.add_layers([layer_record(layer) for layer in layers])
    writer.add_tensors([tensor_record(index, layer) for index, layer in enumerate(layers)])
    writer.add_replicas([ReplicaRecord(worker, worker, "/device:CPU:0")])
    return writer


def write_worker(path: Path, worker: int, values: dict[int, np.ndarray], workers: int = 3, **changes: Any) -> None:
    """Write a worker that sampled the steps of `values`."""
    writer = begin(path, worker, workers)
    for step, tensor in values.items():
        writer.add_sample(sample_record(step, **changes), *arrays_of(tensor))
    writer.close("finished")


# One tensor from several places


def test_merging_is_describing_all_values_at_once():
    """The counts, extremes and moments of the parts put together are those of all values in one array."""
    merged = merge_scalars([arrays_of(values)[0] for values in VALUES])[0]
    whole = describe(np.concatenate(VALUES))
    assert merged["count"] == 9
    assert merged["zeros"] == 4
    assert (merged["positive_infinities"], merged["negative_infinities"], merged["nans"]) == (1, 0, 1)
    assert merged["subnormals"] == whole.subnormals == 1
    assert (merged["min"], merged["max"]) == (-2.0, 1.0)
    assert merged["smallest_nonzero"] == np.float32(np.float16(6e-8))
    assert merged["mean"] == pytest.approx(whole.mean, rel=1e-6)  # float32 sums, added up in another order
    assert merged["rms"] == pytest.approx(whole.rms, rel=1e-6)


def test_merging_parts_without_a_finite_value():
    merged = merge_scalars([arrays_of(VALUES[1])[0]] * 2)[0]
    assert (merged["count"], merged["positive_infinities"], merged["nans"]) == (4, 2, 2)
    assert (merged["min"], merged["max"], merged["smallest_nonzero"], merged["mean"], merged["rms"]) == (0,) * 5


def test_values_whose_squares_leave_float32_stay_infinite():
    huge = arrays_of(np.array([3e38], np.float32))[0]
    assert merge_scalars([huge, huge])[0]["max"] == np.float32(3e38)
    assert merge_scalars([huge, huge])[0]["count"] == 2


# A run of several workers


def test_shares_and_ranges_are_over_all_workers(tmp_path: Path):
    for worker, values in enumerate(VALUES):
        write_worker(tmp_path / "run", worker, {10: values})
    run = open_run(tmp_path / "run")
    assert [sample.step for sample in run.samples] == [10]
    statistics = run.statistics(0, 0)
    assert (statistics.count, statistics.zeros, statistics.nonfinite) == (9, 4, 2)
    assert (statistics.min, statistics.max) == (-2.0, 1.0)
    assert statistics.histogram is not None
    assert statistics.histogram.sum() == 3  # 1, -2 and the subnormal
    assert run.total_histograms().sum() == 3
    assert [worker.status for worker in run.workers] == ["finished"] * 3
    assert [(item.number, item.worker) for item in run.replicas] == [(0, 0), (1, 1), (2, 2)]
    replicas = run.replica_samples(0)
    assert [int(item.scalars[0]["nans"]) for item in replicas] == [0, 1, 0]


def test_steps_that_one_worker_sampled_alone(tmp_path: Path):
    one, two = (np.full(4, value, np.float16) for value in (1, 2))
    write_worker(tmp_path / "run", 0, {1: one, 5: one}, workers=2, loss=1.0)
    write_worker(tmp_path / "run", 1, {5: two, 7: two}, workers=2, loss=2.0)
    run = open_run(tmp_path / "run")
    assert [(sample.index, sample.step, sample.loss) for sample in run.samples] == [
        (0, 1, 1.0),
        (1, 5, 1.5),
        (2, 7, 2.0),
    ]
    assert run.scalars["count"].tolist() == [[4], [8], [4]]
    assert run.scalars["max"].tolist() == [[1], [2], [2]]
    assert run.scalars["min"].tolist() == [[1], [1], [2]]
    assert [len(run.replica_samples(index)) for index in range(3)] == [1, 2, 1]
    assert [int(run.histograms(index).sum()) for index in range(3)] == [4, 8, 4]


def test_workers_whose_tensors_come_in_another_order(tmp_path: Path):
    for worker, layers in enumerate([("a", "b"), ("b", "a")]):
        writer = begin(tmp_path / "run", worker, 2, layers)
        values = [np.full(2, 1 if layer == "a" else 8, np.float16) for layer in layers]
        writer.add_sample(sample_record(0), *arrays_of(*values))
        writer.close("finished")
    run = open_run(tmp_path / "run")
    assert [(tensor.layer, int(run.scalars["max"][0, tensor.index])) for tensor in run.tensors] == [("a", 1), ("b", 8)]
    assert run.scalars["count"].tolist() == [[4, 4]]


def test_many_samples_are_merged_in_chunks(tmp_path: Path):
    """More samples than are read at a time, and not the same number on each worker."""
    for worker, steps in enumerate([50, 37]):
        write_worker(tmp_path / "run", worker, {s: np.full(1, s + 100 * worker, np.float16) for s in range(steps)}, 2)
    run = open_run(tmp_path / "run")
    assert run.scalars["count"][:, 0].tolist() == [2] * 37 + [1] * 13
    assert run.scalars["min"][:, 0].tolist() == list(range(50))
    assert run.scalars["max"][:, 0].tolist() == [step + 100 for step in range(37)] + list(range(37, 50))


def test_two_samples_of_one_step_stay_two(tmp_path: Path):
    """As where a loop has two train steps that are both sampled."""
    for worker in range(2):
        writer = begin(tmp_path / "run", worker, 2)
        for value in (1, 2):
            writer.add_sample(sample_record(4), *arrays_of(np.full(1, value, np.float16)))
        writer.close("finished")
    run = open_run(tmp_path / "run")
    assert run.scalars["max"].tolist() == [[1], [2]]
    assert run.scalars["count"].tolist() == [[2], [2]]


def test_what_all_workers_know_is_told_once(tmp_path: Path):
    for worker in range(2):
        writer = begin(tmp_path / "run", worker, 2)
        writer.add_loss_scale(LossScaleRecord(3, 2.0**15, 3, 0, 3))
        writer.add_step_time(StepTimeRecord(0, 10, 1_000_000, 32))
        writer.add_devices([DeviceInfo("gpu:0", "gpu", f"card {worker}")])
        writer.add_notice(NoticeRecord(1, "info", "probes", "both say this"))
        writer.add_notice(NoticeRecord(1, "info", "probes", f"only {worker} says this"))
        writer.close("finished")
    run = open_run(tmp_path / "run")
    assert len(run.loss_scales) == 1
    assert run.step_times == (StepTimeRecord(0, 10, 1_000_000, 64),)
    assert run.examples_per_s() == 64_000
    assert [(device.id, device.name) for device in run.devices] == [("gpu:0", "card 0"), ("gpu:0 (worker 1)", "card 1")]
    assert [notice.message for notice in run.notices] == [
        "both say this",
        "worker 0: only 0 says this",
        "worker 1: only 1 says this",
    ]


# Workers that are missing


def test_a_missing_worker_is_told(tmp_path: Path):
    write_worker(tmp_path / "run", 0, {1: VALUES[0]})
    write_worker(tmp_path / "run", 2, {1: VALUES[2]})
    run = open_run(tmp_path / "run")
    assert [(worker.number, worker.status) for worker in run.workers] == [
        (0, "finished"),
        (1, "missing"),
        (2, "finished"),
    ]
    assert run.notices[0].message.startswith("worker 1 of 3 left no file in the run directory")
    assert run.scalars["count"].tolist() == [[7]]


def test_worker_0_may_be_the_one_that_is_missing(tmp_path: Path):
    for worker in range(3):
        write_worker(tmp_path / "run", worker, {1: VALUES[worker]})
    (tmp_path / "run" / "worker-0.sqlite").unlink()
    run = open_run(tmp_path / "run")
    assert run.workers[0].status == "missing"
    assert run.scalars["count"].tolist() == [[5]]


def test_a_damaged_worker_is_left_out_and_told(tmp_path: Path):
    for worker in range(2):
        write_worker(tmp_path / "run", worker, {1: VALUES[worker]}, workers=2)
    (tmp_path / "run" / "worker-1.sqlite").write_bytes(b"no database" * 1000)
    run = open_run(tmp_path / "run")
    assert [worker.status for worker in run.workers] == ["finished", "damaged"]
    assert "worker 1 of 2 is left out of this report, for its file cannot be read" in run.notices[0].message
    assert run.scalars["count"].tolist() == [[4]]
    (tmp_path / "run" / "worker-0.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(RunDirectoryError, match=r"is damaged: its worker-0\.sqlite"):
        open_run(tmp_path / "run")


def test_a_worker_that_failed_is_told(tmp_path: Path):
    write_worker(tmp_path / "run", 0, {1: VALUES[0]}, workers=2)
    writer = begin(tmp_path / "run", 1, 2)
    writer.close("failed", "ValueError: no more data")
    run = open_run(tmp_path / "run")
    assert run.status == "finished"
    assert run.notices[0].message == "worker 1 of 2 failed: ValueError: no more data"


# Several replicas in one worker


def test_replicas_of_one_worker_are_read_one_by_one(tmp_path: Path):
    writer = RunWriter.create(tmp_path / "run", run_record())
    writer.add_tensors([tensor_record(0), tensor_record(1, kind="weight", name="kernel")])
    writer.add_replicas([ReplicaRecord(number, 0, f"/device:GPU:{number}") for number in range(2)])
    own = [arrays_of(VALUES[number], VALUES[0]) for number in range(2)]
    replicas = [ReplicaSample(number, loss, own[number][0]) for number, loss in enumerate((0.5, NAN))]
    merged = merge_scalars([scalars for scalars, _ in own])
    writer.add_sample(sample_record(0), merged, own[0][1] + own[1][1], replicas=replicas)
    writer.close("finished")
    run = open_run(tmp_path / "run")
    assert run.scalars["count"].tolist() == [[6, 8]]
    first, second = run.replica_samples(0)
    assert (first.loss, first.scalars.tolist()) == (0.5, own[0][0].tolist())
    assert np.isnan(second.loss or 0)
    assert second.scalars["nans"].tolist() == [1, 0]


# Workers that begin in any order


def test_a_worker_may_come_before_worker_0(tmp_path: Path):
    other, first = begin(tmp_path / "run", 1, 2), begin(tmp_path / "run", 0, 2)
    for writer in (other, first):
        writer.add_sample(sample_record(0), *arrays_of(VALUES[0]))
        writer.close("finished")
    assert open_run(tmp_path / "run").scalars["count"].tolist() == [[8]]


def test_replacing_a_run_keeps_what_a_worker_of_the_next_run_writes(tmp_path: Path):
    for worker in range(3):
        write_worker(tmp_path / "run", worker, {1: VALUES[0]})
    next_run = run_record(model={"workers": 2})
    other = RunWriter.create(tmp_path / "run", next_run, overwrite=True, worker=1)
    first = RunWriter.create(tmp_path / "run", next_run, overwrite=True)
    names = {file.name for file in (tmp_path / "run").iterdir() if file.suffix == ".sqlite"}
    assert names == {"worker-0.sqlite", "worker-1.sqlite"}  # that of worker 2 was the old run's
    for writer in (other, first):
        writer.close("finished")
    assert [worker.samples for worker in open_run(tmp_path / "run").workers] == [0, 0]


def test_a_worker_replaces_its_own_file_only_where_it_may(tmp_path: Path):
    for worker in range(2):
        write_worker(tmp_path / "run", worker, {1: VALUES[0]}, workers=2)
    with pytest.raises(RunDirectoryError, match=r"worker-1\.sqlite' exists; .* or pass overwrite=True"):
        RunWriter.create(tmp_path / "run", run_record(), worker=1)
    assert len(open_run(tmp_path / "run").samples) == 1


def test_a_worker_does_not_write_into_a_directory_that_is_no_run(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(RunDirectoryError, match="exists and is not empty"):
        RunWriter.create(tmp_path, run_record(), worker=1)
