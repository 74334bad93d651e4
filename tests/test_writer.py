from __future__ import annotations

import resource
import shutil
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from precscope.errors import RunDirectoryError
from precscope.reader import open_run
from precscope.records import SCALAR_DTYPE, CostRecord, LossScaleRecord, NoticeRecord
from precscope.writer import RunWriter
from tests.core_fixtures import arrays_of, layer_record, random_arrays, run_record, sample_record, tensor_record

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def writer(tmp_path: Path) -> RunWriter:
    """A writer of a run with one layer and three tensors."""
    writer = RunWriter.create(tmp_path / "run", run_record())
    writer.add_layers([layer_record()])
    writer.add_tensors([tensor_record(index, name=str(index)) for index in range(3)])
    return writer


def test_a_new_run_can_be_read_at_once(tmp_path: Path):
    RunWriter.create(tmp_path / "run", run_record())
    run = open_run(tmp_path / "run")
    assert run.record == run_record()
    assert run.status == "running"
    assert (run.layers, run.tensors, run.samples) == ((), (), ())
    assert run.scalars.shape == (0, 0)
    assert run.total_histograms().shape == (0, 64)


def test_records_survive(writer: RunWriter):
    layer = layer_record("softmax", order=-1, keras_path=None, inputs=(), unseen="not selected", gradient_unseen="no")
    tensor = tensor_record(3, shape=None, calls=None, note="merged over time steps", kind="weight_gradient")
    samples = [
        sample_record(0),
        sample_record(7, loss=None, loss_scale=None, applied=None, iterations=None),
        sample_record(9, applied=False, loss=float("inf")),
    ]
    scales = [LossScaleRecord(0, 2.0**15, 0, 0, 0), LossScaleRecord(9, None, None, None, None)]
    notices = [NoticeRecord(None, "info", "probes", "grüße"), NoticeRecord(3, "error", "sampling", "off")]
    costs = [CostRecord("compile", 1, 10**12), CostRecord("step", 40, 3)]
    writer.add_layers([layer])
    writer.add_tensors([tensor])
    for sample in samples:
        writer.add_sample(sample, *random_arrays(4, seed=sample.step))
    for scale in scales:
        writer.add_loss_scale(scale)
    for notice in notices:
        writer.add_notice(notice)
    writer.set_costs(costs)
    run = open_run(writer.path)
    assert run.layers == (layer, layer_record())
    assert run.tensors[3] == tensor
    assert [s.index for s in run.samples] == [0, 1, 2]
    assert [replace(sample, index=0) for sample in run.samples] == samples
    assert run.loss_scales == tuple(scales)
    assert run.notices == tuple(notices)
    assert run.costs == tuple(costs)


def test_types_survive(writer: RunWriter):
    writer.add_sample(sample_record(0, applied=False), *random_arrays(3, seed=0))
    run = open_run(writer.path)
    assert run.samples[0].applied is False
    assert run.layers[0].inputs == ("flatten",)
    assert run.tensors[0].shape == (None, 10)


def test_a_loss_of_nan_is_not_a_loss_that_was_not_seen(writer: RunWriter):
    for loss in (float("nan"), None, 0.0):
        writer.add_sample(sample_record(0, loss=loss), *random_arrays(3, seed=0))
    nan, unseen, zero = (sample.loss for sample in open_run(writer.path).samples)
    assert nan is not None
    assert np.isnan(nan)
    assert unseen is None
    assert zero == 0.0


def test_numpy_scalars_are_taken(writer: RunWriter):
    sample = sample_record(np.int64(4), loss=np.float32(0.5), iterations=np.int32(3))  # type: ignore[arg-type]
    writer.add_sample(sample, *random_arrays(3, seed=0))
    read = open_run(writer.path).samples[0]
    assert (read.step, read.loss, read.iterations) == (4, 0.5, 3)
    assert type(read.step) is int


def test_a_layer_that_is_described_again_is_replaced(writer: RunWriter):
    writer.add_layers([layer_record("other", order=5)])
    writer.add_layers([layer_record(order=9, unseen="no float output")])
    assert open_run(writer.path).layers == (
        layer_record("other", order=5),
        layer_record(order=9, unseen="no float output"),
    )


def test_costs_are_replaced(writer: RunWriter):
    writer.set_costs([CostRecord("read", 1, 10), CostRecord("write", 1, 5)])
    writer.set_costs([CostRecord("read", 2, 20)])
    assert set(open_run(writer.path).costs) == {CostRecord("read", 2, 20), CostRecord("write", 1, 5)}


@pytest.mark.parametrize("indices", [[0], [2], [4], [3, 5], [4, 3]])
def test_tensors_are_only_appended(writer: RunWriter, indices: list[int]):
    with pytest.raises(ValueError, match="numbered on from 3"):
        writer.add_tensors([tensor_record(index) for index in indices])
    assert len(open_run(writer.path).tensors) == 3


def test_arrays_that_do_not_fit_are_refused(writer: RunWriter):
    scalars, histograms = random_arrays(3, seed=0)
    wrong: list[tuple[Any, Any, Any, str]] = [
        (scalars[:2], histograms, None, r"scalars must be .* \[3\]; received .* \[2\]"),
        (scalars, histograms[:2], None, r"histograms must be uint64 \[3, 64\]; received uint64 \[2, 64\]"),
        (scalars, histograms.astype(np.int64), None, r"received int64 \[3, 64\]"),
        (np.zeros(3), histograms, None, "received float64"),
        (scalars, histograms, [0, 1], r"scalars must be .* \[2\]; received .* \[3\]"),
        (scalars, histograms, [0, 1, 3], r"Tensor indices must ascend and lie in \[0, 3\)"),
        (scalars, histograms, [0, 2, 1], "Tensor indices must ascend"),
        (scalars, histograms, [0, 1, 1], "Tensor indices must ascend"),
        (scalars, histograms, [-1, 0, 1], "Tensor indices must ascend"),
    ]
    for some_scalars, some_histograms, indices, words in wrong:
        with pytest.raises(ValueError, match=words):
            writer.add_sample(sample_record(0), some_scalars, some_histograms, indices)
    assert open_run(writer.path).samples == ()


def test_a_record_that_is_none_is_the_callers_mistake(writer: RunWriter):
    with pytest.raises(sqlite3.IntegrityError, match=r"NOT NULL constraint failed: layers\.policy"):
        writer.add_layers([layer_record("new"), layer_record("bad", policy=None)])
    assert [layer.id for layer in open_run(writer.path).layers] == ["dense"]  # nothing of the call is stored


def test_strided_arrays_are_stored_in_order(writer: RunWriter):
    scalars, histograms = random_arrays(6, seed=0)
    writer.add_sample(sample_record(0), scalars[::2], np.asfortranarray(histograms)[::2])
    run = open_run(writer.path)
    assert (run.scalars[0] == scalars[::2]).all()
    assert (run.histograms(0) == histograms[::2]).all()


def test_close_records_how_it_ended_and_leaves_two_files(writer: RunWriter):
    writer.add_sample(sample_record(0), *random_arrays(3, seed=0))
    writer.close("interrupted", error="KeyboardInterrupt", ended_unix_s=1_700_000_009.5)
    run = open_run(writer.path)
    assert (run.status, run.record.error, run.record.ended_unix_s) == (
        "interrupted",
        "KeyboardInterrupt",
        1_700_000_009.5,
    )
    assert len(run.samples) == 1
    assert {file.name for file in writer.path.iterdir()} == {"run.yaml", "worker-0.sqlite"}


def test_close_takes_the_time_where_none_is_given(writer: RunWriter):
    writer.close("finished")
    ended = open_run(writer.path).record.ended_unix_s
    assert ended is not None
    assert ended > run_record().started_unix_s


def test_the_first_close_counts(writer: RunWriter):
    writer.close("failed", error="ValueError: x")
    writer.close("finished")
    assert open_run(writer.path).status == "failed"


def test_a_closed_run_takes_nothing(writer: RunWriter):
    writer.close("finished")
    with pytest.raises(RunDirectoryError, match="is closed; nothing can be written"):
        writer.add_notice(NoticeRecord(None, "info", "probes", "late"))


def test_update_record(writer: RunWriter):
    writer.update_record(model={"name": "mlp", "jit_compile": True})
    assert open_run(writer.path).record == run_record(model={"name": "mlp", "jit_compile": True})
    writer.close("finished", ended_unix_s=5.0)
    assert open_run(writer.path).record.model["jit_compile"] is True


def test_a_run_is_replaced_on_request_only(writer: RunWriter):
    writer.add_sample(sample_record(0), *random_arrays(3, seed=0))
    writer.close("finished")
    with pytest.raises(RunDirectoryError, match="exists and is not empty"):
        RunWriter.create(writer.path, run_record())
    assert len(open_run(writer.path).samples) == 1
    RunWriter.create(writer.path, run_record(name="second"), overwrite=True)
    run = open_run(writer.path)
    assert (run.record.name, run.samples) == ("second", ())


def test_a_directory_that_was_removed_is_told_and_close_is_silent(writer: RunWriter):
    shutil.rmtree(writer.path)
    with pytest.raises(RunDirectoryError, match=r"worker-0\.sqlite' was removed or replaced while the run was written"):
        writer.add_sample(sample_record(0), *random_arrays(3, seed=0))
    with pytest.raises(RunDirectoryError, match="was removed or replaced"):
        writer.update_record(model={})
    writer.close("finished")
    assert not writer.path.exists()


def test_a_run_that_another_replaced_is_left_alone(writer: RunWriter):
    """The older writer of the same directory hears of it, and does not end the newer run."""
    newer = RunWriter.create(writer.path, run_record(name="newer"), overwrite=True)
    with pytest.raises(RunDirectoryError, match="was removed or replaced"):
        writer.add_notice(NoticeRecord(None, "info", "probes", "old"))
    writer.close("failed")
    run = open_run(writer.path)
    assert (run.record.name, run.status, run.notices) == ("newer", "running", ())
    newer.add_notice(NoticeRecord(None, "info", "probes", "new"))
    assert len(open_run(writer.path).notices) == 1


def test_a_disk_that_was_full_at_the_end_keeps_the_run(writer: RunWriter):
    writer.add_sample(sample_record(0), *random_arrays(3, seed=0))
    (writer.path / "run.yaml.part").symlink_to("/dev/full")
    writer.close("finished")
    run = open_run(writer.path)
    assert run.record.status == "running"
    assert len(run.samples) == 1


def test_a_run_that_cannot_begin_leaves_nothing(tmp_path: Path):
    """The system refuses files above 8 kB: enough for run.yaml, too little for the database."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, limits[1]))
    try:
        with pytest.raises(RunDirectoryError, match=r"is full .* worker-0\.sqlite cannot grow"):
            RunWriter.create(tmp_path / "run", run_record())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "run").iterdir()) == []
    RunWriter.create(tmp_path / "run", run_record()).close("finished")


def test_a_name_with_every_character_survives(tmp_path: Path):
    directory = tmp_path / "ä b%20?#&=' 100%"
    writer = RunWriter.create(directory, run_record())
    writer.add_layers([layer_record("x'; DROP TABLE layers; --\n\N{GRINNING FACE}")])
    writer.close("finished")
    assert open_run(directory).layers[0].id == "x'; DROP TABLE layers; --\n\N{GRINNING FACE}"


def test_the_file_is_made_for_other_tools(writer: RunWriter):
    """Column names of the documented schema, as a data person's first query sees them."""
    writer.add_sample(sample_record(3, loss=0.5), *random_arrays(3, seed=0))
    database = sqlite3.connect(writer.path / "worker-0.sqlite")
    rows = database.execute("SELECT step, loss, loss_scale, applied, step_time_ns FROM samples").fetchall()
    assert rows == [(3, 0.5, 32768.0, 1, 1_000_000)]
    assert database.execute("SELECT layer, kind, dtype, shape FROM tensors").fetchone() == (
        "dense",
        "activation",
        "float16",
        "[null, 10]",
    )
    database.close()
    assert yaml.safe_load((writer.path / "run.yaml").read_text())["run"]["model"]["name"] == "mlp"


def test_a_sample_takes_at_most_400_bytes_a_tensor(tmp_path: Path):
    """With normally distributed tensors at many scales, as in training; the target of docs/run_directory.md."""
    tensors, samples = 400, 20
    writer = RunWriter.create(tmp_path / "run", run_record())
    writer.add_tensors([tensor_record(index, name=str(index)) for index in range(tensors)])
    random = np.random.default_rng(0)
    scales = np.exp2(random.uniform(-20, 2, (tensors, 1)))
    for step in range(samples):
        values = (random.standard_normal((tensors, 1000)) * scales).astype(np.float32)
        writer.add_sample(sample_record(step), *arrays_of(*values))
    writer.close("finished")
    size = sum(file.stat().st_size for file in writer.path.iterdir())
    assert size <= 400 * tensors * samples
    assert size > SCALAR_DTYPE.itemsize * tensors * samples
