"""Following a run: each look reads what is new, keeps a bounded part, and never stands in the writer's way."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from dataclasses import replace

import numpy as np
import pytest

from precscope import sqlite_files, worker_tail
from precscope.device_records import DeviceInfo, DeviceSample
from precscope.errors import RunDirectoryError
from precscope.reader import open_run
from precscope.records import CostRecord, LossScaleRecord, NoticeRecord, ProgressRecord, StepTimeRecord
from precscope.reference_records import ReferenceRecord, ReferenceStepRecord
from precscope.run_file import ProcessRecord
from precscope.run_tail import RunTail
from precscope.writer import RunWriter
from tests.core_fixtures import layer_record, random_arrays, run_record, sample_record, tensor_record


class Clock:
    """A clock that stands still until it is told to move."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        self.now_s += 10.0  # every look may look at the process
        return self.now_s


def begin(path, tensors=3, **changes):
    writer = RunWriter.create(path, run_record(**changes), overwrite=True)
    writer.add_layers([layer_record("dense")])
    writer.add_tensors([tensor_record(index, name=str(index)) for index in range(tensors)])
    return writer


def add_samples(writer, steps, tensors=3):
    for step in steps:
        writer.add_sample(sample_record(step), *random_arrays(tensors, seed=step))


def steps_of(fresh):
    return [item.sample.step for item in fresh]


def test_it_waits_for_the_run_and_then_reads_what_is_new(tmp_path):
    tail = RunTail(tmp_path / "runs" / "later", Clock())
    assert not tail.look()
    assert tail.status == "waiting"
    writer = begin(tmp_path / "runs" / "later")
    assert tail.look()
    assert (tail.status, tail.runs) == ("running", 1)
    add_samples(writer, range(3))
    assert tail.look()
    (worker,) = tail.workers
    assert steps_of(worker.fresh) == [0, 1, 2]
    assert (worker.fresh[1].scalars == random_arrays(3, seed=1)[0]).all()
    add_samples(writer, [3])
    assert tail.look()
    assert steps_of(worker.fresh) == [3]
    assert not tail.look()
    assert worker.fresh == []
    writer.close("finished")
    tail.look()
    assert tail.status == "finished"


def test_everything_that_a_session_writes_is_followed(tmp_path):
    writer, tail = begin(tmp_path / "run"), RunTail(tmp_path / "run", Clock())
    tail.look()
    writer.add_loss_scale(LossScaleRecord(5, 1024.0, 5, 0, 5))
    writer.add_notice(NoticeRecord(5, "warning", "probes", "message"))
    writer.add_step_time(StepTimeRecord(0, 5, 2_000_000, 32))
    writer.set_costs([CostRecord("step", 1, 1000)])
    writer.add_devices([DeviceInfo("gpu:0", "gpu")])
    writer.add_device_samples([DeviceSample("gpu:0", 1.0, 100), DeviceSample("gpu:0", 2.0, 200)])
    writer.add_layers([layer_record("dense", parameters=9)])
    writer.add_sample(sample_record(6), *random_arrays(3, seed=0), costs=[CostRecord("step", 2, 3000)])
    assert tail.look()
    (worker,) = tail.workers
    assert worker.loss_scales.items() == (LossScaleRecord(5, 1024.0, 5, 0, 5),)
    assert [notice.message for notice in worker.notices] == ["message"]
    assert worker.step_times.last == StepTimeRecord(0, 5, 2_000_000, 32)
    assert worker.costs == (CostRecord("step", 2, 3000),)
    assert worker.devices == {"gpu:0": DeviceInfo("gpu:0", "gpu")}
    assert [item.memory_used_bytes for item in worker.device_samples["gpu:0"].items()] == [100, 200]
    assert worker.layers["dense"].parameters == 9


def test_device_samples_go_on_after_the_writer_thinned_them(tmp_path):
    writer, tail = begin(tmp_path / "run"), RunTail(tmp_path / "run", Clock())
    writer.add_device_samples([DeviceSample("gpu:0", float(time), time) for time in range(4)])
    tail.look()
    writer.thin_device_samples()  # rows 2 and 4 go, so that the next one is row 4 again
    writer.add_device_samples([DeviceSample("gpu:0", 10.0, 10)])
    tail.look()
    assert [item.memory_used_bytes for item in tail.workers[0].device_samples["gpu:0"].items()] == [0, 1, 2, 3, 10]


def test_what_is_written_in_place_of_what_was_there_is_followed(tmp_path):
    writer, tail = begin(tmp_path / "run"), RunTail(tmp_path / "run", Clock())
    steps = []
    for step in (0, 7, 7, 12):
        writer.add_device_samples([DeviceSample("host", float(step), 1)], ProgressRecord(step, float(step)))
        tail.look()
        steps.append([record.step for record in tail.workers[0].progress.items()])
    assert steps == [[0], [0, 7], [0, 7], [0, 7, 12]]


def test_the_last_reference_steps_are_kept(tmp_path):
    writer, tail = begin(tmp_path / "run"), RunTail(tmp_path / "run", Clock())
    for step in range(6):
        reference = ReferenceStepRecord(step, "budget", 8, 8, 1.0, 0.5, 0.5, "equal", True, 1000)
        tensor = ReferenceRecord(
            step, "budget", "dense", "activation", "0", 10, 10, 1.0, 0, 0, 0, 0.1, 20.0, 0.99, None
        )
        writer.add_reference(reference, [tensor])
        tail.look()
    run = tail.recent_run(1)
    assert [item.step for item in run.reference_steps] == [2, 3, 4, 5]
    assert [item.step for item in run.reference] == [2, 3, 4, 5]


def test_a_long_run_is_caught_up_with_in_short_looks(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_tail, "_ROWS_A_LOOK", 20)
    writer, tail = begin(tmp_path / "run"), RunTail(tmp_path / "run", Clock())
    add_samples(writer, range(50))
    looks = 0
    while looks == 0 or tail.is_behind:
        tail.look()
        looks += 1
    (worker,) = tail.workers
    assert looks == 3
    assert worker.samples.seen == 50
    assert steps_of(worker.fresh) == list(range(50 - worker_tail.RECENT, 50))  # no scalars of what is long over


def test_what_is_kept_is_bounded(tmp_path):
    writer, tail = begin(tmp_path / "run", tensors=1), RunTail(tmp_path / "run", Clock())
    for step in range(1200):
        writer.add_loss_scale(LossScaleRecord(step, 1.0, step, 0, None))
    add_samples(writer, range(40), tensors=1)
    tail.look()
    (worker,) = tail.workers
    assert worker.loss_scales.seen == 1200
    assert len(worker.loss_scales.items()) <= 513
    assert len(worker.recent) == len(worker.fresh) == worker_tail.RECENT


def test_an_unchanged_file_is_not_opened(tmp_path, monkeypatch):
    writer, tail = begin(tmp_path / "run"), RunTail(tmp_path / "run", Clock())
    add_samples(writer, range(3))
    for _ in range(3):
        tail.look()

    def refuse(path):
        raise AssertionError("the file was opened")

    monkeypatch.setattr(worker_tail, "open_database", refuse)
    assert not tail.look()
    add_samples(writer, [3])
    with pytest.raises(AssertionError, match="was opened"):
        tail.look()


def test_the_last_samples_as_a_run(tmp_path):
    writer, tail = begin(tmp_path / "run"), RunTail(tmp_path / "run", Clock())
    add_samples(writer, range(20))
    tail.look()
    run, whole = tail.recent_run(5), open_run(tmp_path / "run")
    assert [sample.step for sample in run.samples] == [15, 16, 17, 18, 19]
    assert (run.scalars == whole.scalars[15:]).all()
    assert (run.histograms(0) == whole.histograms(15)).all()
    assert (run.total_histograms() == sum(whole.histograms(n) for n in range(15, 20))).all()
    assert run.layers == whole.layers
    assert run.tensors == whole.tensors


def test_samples_that_are_gone_are_left_out(tmp_path):
    writer, tail = begin(tmp_path / "run"), RunTail(tmp_path / "run", Clock())
    add_samples(writer, range(20))
    tail.look()
    with sqlite3.connect(tmp_path / "run" / "worker-0.sqlite") as connection:
        connection.execute('DELETE FROM samples WHERE "index" % 2 = 1')
    connection.close()
    add_samples(writer, [20])  # after the look: not in it
    run = tail.recent_run(6)
    assert [sample.step for sample in run.samples] == [14, 16, 18]
    assert (run.scalars[1] == random_arrays(3, seed=16)[0]).all()


def test_without_a_run_there_are_no_last_samples(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"There is no run at '.*none' yet"):
        RunTail(tmp_path / "none").recent_run(5)


def test_several_workers_are_followed(tmp_path):
    first, second = begin(tmp_path / "run"), begin(tmp_path / "other")
    add_samples(first, range(2))
    add_samples(second, range(3))
    second.close("finished")
    shutil.copy(tmp_path / "other" / "worker-0.sqlite", tmp_path / "run" / "worker-1.sqlite")
    tail = RunTail(tmp_path / "run", Clock())
    tail.look()
    assert [worker.samples.seen for worker in tail.workers] == [2, 3]
    assert [sample.step for sample in tail.recent_run(2).samples] == [0, 1, 2]  # 0 and 1, 1 and 2


def test_another_run_in_its_place_is_followed_anew(tmp_path):
    tail = RunTail(tmp_path / "run", Clock())
    writer = begin(tmp_path / "run")
    add_samples(writer, range(3))
    tail.look()
    writer.close("finished")
    again = begin(tmp_path / "run", started_unix_s=1_700_000_500.0)
    add_samples(again, range(100, 102))
    assert tail.look()
    assert tail.runs == 2
    assert steps_of(tail.workers[0].fresh) == [100, 101]


def test_a_run_that_is_deleted_is_waited_for(tmp_path):
    begin(tmp_path / "run").close("finished")
    tail = RunTail(tmp_path / "run", Clock())
    tail.look()
    shutil.rmtree(tmp_path / "run")
    assert tail.look()
    assert tail.status == "waiting"
    assert not tail.look()


def test_a_process_that_is_gone_is_seen(tmp_path, monkeypatch):
    begin(tmp_path / "run")
    tail = RunTail(tmp_path / "run", Clock())
    tail.look()
    assert tail.status == "running"
    monkeypatch.setattr(ProcessRecord, "is_alive", lambda self: False)
    assert tail.look()
    assert tail.status == "killed"


def test_a_run_that_ends_between_two_looks_is_not_taken_for_killed(tmp_path, monkeypatch):
    writer = begin(tmp_path / "run")
    tail = RunTail(tmp_path / "run", Clock())
    tail.look()

    def ended(self):
        writer.close("finished")
        return False

    monkeypatch.setattr(ProcessRecord, "is_alive", ended)
    assert tail.look()
    assert tail.status == "finished"


def test_what_cannot_be_read_is_told(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(RunDirectoryError, match="is a file, not a run directory"):
        RunTail(file).look()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.yaml").write_text("format: else\n...\n")
    with pytest.raises(RunDirectoryError, match="is not a PrecScope run directory"):
        RunTail(tmp_path / "other").look()
    with pytest.raises(RunDirectoryError, match="is a URL"):
        RunTail("s3://bucket/run")


# The writer


def test_the_writer_never_waits_for_a_look(tmp_path, monkeypatch):
    """While a look is held up in its transaction, everything can be written and the run can end."""
    monkeypatch.setattr(sqlite_files, "_BUSY_S", 0.0)  # whoever would wait for the other fails at once
    writer = begin(tmp_path / "run")
    add_samples(writer, range(3))
    tail = RunTail(tmp_path / "run", Clock())
    reading, written = threading.Event(), threading.Event()
    scalars_after = worker_tail.scalars_after

    def held_up(*arguments):
        reading.set()
        assert written.wait(30)
        return scalars_after(*arguments)

    monkeypatch.setattr(worker_tail, "scalars_after", held_up)
    reader = threading.Thread(target=tail.look)
    reader.start()
    assert reading.wait(30)
    add_samples(writer, range(3, 40))
    writer.add_loss_scale(LossScaleRecord(5, 1024.0, 5, 0, 5))
    writer.add_device_samples([DeviceSample("host", 1.0, 100)])
    writer.thin_device_samples()
    writer.close("finished")
    written.set()
    reader.join(30)
    assert steps_of(tail.workers[0].fresh) == [0, 1, 2]  # the snapshot from before
    monkeypatch.setattr(worker_tail, "scalars_after", scalars_after)
    assert tail.look()
    assert tail.status == "finished"
    assert tail.workers[0].samples.seen == 40
    assert tail.workers[0].fresh[-1].sample.step == 39
    assert open_run(tmp_path / "run").samples[-1].step == 39


def test_looks_leave_the_log_to_be_folded_into_the_file(tmp_path):
    writer = begin(tmp_path / "run")
    tail = RunTail(tmp_path / "run", Clock())
    for step in range(5):
        add_samples(writer, [step])
        tail.look()
    writer.close("finished")
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["run.yaml", "worker-0.sqlite"]


def test_a_run_of_an_earlier_version_without_some_tables(tmp_path):
    writer = begin(tmp_path / "run")
    add_samples(writer, range(2))
    writer.close("finished")
    connection = sqlite3.connect(tmp_path / "run" / "worker-0.sqlite")
    for table in ("step_times", "devices", "device_samples", "origins", "progress"):
        connection.execute(f"DROP TABLE {table}")
    connection.commit()
    connection.close()
    tail = RunTail(tmp_path / "run", Clock())
    tail.look()
    assert tail.workers[0].samples.seen == 2


def test_tensors_that_come_later(tmp_path):
    writer, tail = begin(tmp_path / "run"), RunTail(tmp_path / "run", Clock())
    add_samples(writer, [0])
    tail.look()
    writer.add_tensors([replace(tensor_record(3), name="new")])
    writer.add_sample(sample_record(1), *random_arrays(1, seed=5), tensor_indices=[3])
    tail.look()
    (worker,) = tail.workers
    assert [tensor.name for tensor in worker.tensors] == ["0", "1", "2", "new"]
    assert np.asarray(worker.fresh[0].columns).tolist() == [3]
