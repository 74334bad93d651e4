from __future__ import annotations

import json
import math
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from precscope.errors import RunDirectoryError
from precscope.merged_scalars import merge_scalars
from precscope.reader import Run, open_run
from precscope.records import SCALAR_DTYPE, CostRecord, NoticeRecord
from precscope.run_file import ProcessRecord, read_run_file, write_run_file
from precscope.statistics import HISTOGRAM_BINS, describe
from precscope.writer import RunWriter
from tests.core_fixtures import arrays_of, layer_record, random_arrays, run_record, sample_record, tensor_record

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

KINDS = ("activation", "gradient", "weight", "weight_gradient")


def write_run(path: Path, samples: int = 3, layers: tuple[str, ...] = ("conv", "dense")) -> RunWriter:
    """Write a run with four tensors a layer; sample i holds `random_arrays(tensors, seed=i)`."""
    writer = RunWriter.create(path, run_record())
    writer.add_layers([layer_record(name, order=order) for order, name in enumerate(layers)])
    pairs = [(layer, kind) for layer in layers for kind in KINDS]
    writer.add_tensors([tensor_record(i, layer, kind=kind) for i, (layer, kind) in enumerate(pairs)])
    for step in range(samples):
        writer.add_sample(sample_record(step), *random_arrays(len(pairs), seed=step))
    return writer


def change_database(run: Path, statement: str, *values: Any) -> None:
    database = sqlite3.connect(run / "worker-0.sqlite")
    with database:
        database.execute(statement, values)
    database.close()


# Records


def test_layers_are_in_the_order_of_the_forward_pass(tmp_path: Path):
    writer = RunWriter.create(tmp_path / "run", run_record())
    writer.add_layers([layer_record("c", order=2), layer_record("b", order=0), layer_record("a", order=2)])
    assert [layer.id for layer in open_run(tmp_path / "run").layers] == ["b", "a", "c"]


def test_find_by_layer_and_kind(tmp_path: Path):
    write_run(tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert run.find() == run.tensors
    assert [tensor.index for tensor in run.find(layer="dense")] == [4, 5, 6, 7]
    assert [tensor.index for tensor in run.find(kind="gradient")] == [1, 5]
    assert [tensor.index for tensor in run.find("dense", "weight")] == [6]


def test_an_unknown_layer_names_the_nearest(tmp_path: Path):
    write_run(tmp_path / "run", layers=("encoder/block/dense", "encoder/block/conv"))
    run = open_run(tmp_path / "run")
    assert run.layer("encoder/block/dense").id == "encoder/block/dense"
    for ask in (run.layer, run.find):
        with pytest.raises(RunDirectoryError, match=r"has no layer 'dense'\. Did you mean 'encoder/block/dense'\?"):
            ask("dense")


def test_a_run_shows_its_size(tmp_path: Path):
    write_run(tmp_path / "run").close("finished")
    assert repr(open_run(tmp_path / "run")) == f"<Run '{tmp_path}/run' (finished): 2 layers, 8 tensors, 3 samples>"


# Arrays


def test_arrays_are_those_that_were_written(tmp_path: Path):
    write_run(tmp_path / "run", samples=3).close("finished")
    run = open_run(tmp_path / "run")
    assert run.scalars.dtype == SCALAR_DTYPE
    assert run.scalars.shape == (3, 8)
    for sample in range(3):
        scalars, histograms = random_arrays(8, seed=sample)
        assert (run.scalars[sample] == scalars).all()
        assert (run.histograms(sample) == histograms).all()


def test_histograms_of_a_sample_that_is_none(tmp_path: Path):
    write_run(tmp_path / "run", samples=3)
    run = open_run(tmp_path / "run")
    assert (run.histograms(-1) == run.histograms(2)).all()
    for sample in (3, -4):
        with pytest.raises(IndexError):
            run.histograms(sample)


@pytest.mark.parametrize("samples", [0, 1, 15, 16, 17, 32, 50])
def test_totals_are_the_sum_of_all_samples(tmp_path: Path, samples: int):
    """Also just before, at and after a sample with which the running totals are stored."""
    write_run(tmp_path / "run", samples)
    expected = np.zeros((8, HISTOGRAM_BINS), np.uint64)
    for sample in range(samples):
        expected += random_arrays(8, seed=sample)[1]
    totals = open_run(tmp_path / "run").total_histograms()
    assert totals.dtype == np.uint64
    assert (totals == expected).all()


def test_counts_beyond_32_bits_survive(tmp_path: Path):
    writer = RunWriter.create(tmp_path / "run", run_record())
    writer.add_tensors([tensor_record(0)])
    scalars, histograms = random_arrays(1, seed=0)
    scalars["count"], histograms[0, 3] = 2**40, 2**63
    writer.add_sample(sample_record(0), scalars, histograms)
    run = open_run(tmp_path / "run")
    assert run.statistics(0, 0).count == 2**40
    assert run.total_histograms()[0, 3] == np.uint64(2**63)


def test_arrays_are_read_once_and_cannot_be_changed(tmp_path: Path):
    write_run(tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert run.scalars is run.scalars
    assert run.total_histograms() is run.total_histograms()
    assert run.histograms(1) is run.histograms(1)
    for array in (run.scalars, run.total_histograms(), run.histograms(1), run.statistics(0, 0).histogram):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_samples_that_hold_some_tensors_only(tmp_path: Path):
    writer = write_run(tmp_path / "run", samples=1, layers=("conv",))
    scalars, histograms = random_arrays(2, seed=9)
    for step in range(1, 20):  # over the sample that stores totals
        writer.add_sample(sample_record(step), scalars, histograms, tensor_indices=[1, 3])
    writer.add_sample(sample_record(20), scalars[:0], histograms[:0], tensor_indices=[])
    run = open_run(tmp_path / "run")
    assert run.scalars["count"][1].tolist() == [0, 32, 0, 32]
    assert run.scalars["count"][20].tolist() == [0, 0, 0, 0]
    assert (run.scalars[1, [1, 3]] == scalars).all()
    assert (run.histograms(1)[[1, 3]] == histograms).all()
    assert not run.histograms(1)[[0, 2]].any()
    first = random_arrays(4, seed=0)[1]
    assert (run.total_histograms()[[0, 2]] == first[[0, 2]]).all()
    assert (run.total_histograms()[[1, 3]] == first[[1, 3]] + 19 * histograms).all()


def test_tensors_that_came_later_are_absent_before(tmp_path: Path):
    writer = write_run(tmp_path / "run", samples=16, layers=("conv",))
    writer.add_tensors([tensor_record(4, "conv", name="1")])
    writer.add_sample(sample_record(16), *random_arrays(5, seed=16))
    run = open_run(tmp_path / "run")
    assert run.scalars["count"][:, 4].tolist() == [0] * 16 + [32]
    assert run.histograms(0).shape == (5, HISTOGRAM_BINS)
    assert (run.total_histograms()[4] == random_arrays(5, seed=16)[1][4]).all()


# Statistics


def statistics_of(tmp_path: Path, *tensors: NDArray[np.generic], **changes: float) -> Run:
    writer = RunWriter.create(tmp_path / "run", run_record())
    writer.add_tensors([tensor_record(i, name=str(i), dtype=t.dtype.name) for i, t in enumerate(tensors)])
    scalars, histograms = arrays_of(*tensors)
    for name, value in changes.items():
        scalars[name] = value
    writer.add_sample(sample_record(0), scalars, histograms)
    return open_run(tmp_path / "run")


def test_statistics_are_those_of_the_reference(tmp_path: Path):
    tensors: list[Any] = [
        np.array([1.5, -2.0, 0.0, 6e-8], np.float16),
        np.array([np.inf, -np.inf, np.nan, 3.0], np.float32),
        np.array([0.0, -0.0], np.float16),
    ]
    run = statistics_of(tmp_path, *tensors)
    for index, tensor in enumerate(tensors):
        expected = describe(tensor)
        in_float32: dict[str, Any] = {
            name: None if (value := getattr(expected, name)) is None else float(np.float32(value))
            for name in ("min", "max", "smallest_nonzero", "mean", "rms")
        }
        assert run.statistics(0, index) == replace(expected, **in_float32)


def test_without_finite_values_there_is_no_number(tmp_path: Path):
    statistics = statistics_of(tmp_path, np.array([np.inf, np.nan], np.float16), min=-1.0, max=1.0, mean=7.0, rms=7.0)
    found = statistics.statistics(0, 0)
    assert found.count == 2
    assert (found.min, found.max, found.smallest_nonzero, found.mean, found.rms) == (None,) * 5


def test_a_tensor_that_was_not_recorded_has_no_number(tmp_path: Path):
    run = statistics_of(tmp_path, np.array([], np.float16))
    found = run.statistics(0, 0)
    assert found.count == 0
    assert (found.min, found.max, found.smallest_nonzero, found.mean, found.rms) == (None,) * 5


def test_without_nonzero_values_there_is_no_smallest(tmp_path: Path):
    found = statistics_of(tmp_path, np.zeros(3, np.float16), smallest_nonzero=math.inf).statistics(0, 0)
    assert (found.min, found.max, found.smallest_nonzero, found.mean, found.rms) == (0.0, 0.0, None, 0.0, 0.0)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_sum_that_left_float32_is_no_mean(tmp_path: Path, value: float):
    found = statistics_of(tmp_path, np.ones(3, np.float32), mean=value, rms=value).statistics(0, 0)
    assert (found.mean, found.rms) == (None, None)
    assert found.max == 1.0


def test_squares_that_vanished_are_no_rms(tmp_path: Path):
    found = statistics_of(tmp_path, np.full(3, 1e-30, np.float32), rms=0.0).statistics(0, 0)
    assert found.rms is None
    assert found.mean == pytest.approx(1e-30)


# Status


def set_process(run: Path, process: ProcessRecord) -> None:
    write_run_file(run, read_run_file(run)[0], process)


def test_the_status_of_a_run_whose_process_is_gone(tmp_path: Path):
    writer = write_run(tmp_path / "run")
    assert open_run(tmp_path / "run").status == "running"
    set_process(tmp_path / "run", replace(ProcessRecord.current(), created_unix_s=1.0, created_ticks=1))
    run = open_run(tmp_path / "run")
    assert run.status == "killed"
    assert run.record.status == "running"
    writer.close("finished")
    assert open_run(tmp_path / "run").status == "finished"


def test_the_process_of_another_host_is_taken_to_live(tmp_path: Path):
    write_run(tmp_path / "run")
    set_process(tmp_path / "run", ProcessRecord("elsewhere", 1, 1.0))
    assert open_run(tmp_path / "run").status == "running"


@pytest.mark.parametrize("status", ["finished", "interrupted", "failed"])
def test_a_run_that_ended_was_not_killed(tmp_path: Path, status: Any):
    write_run(tmp_path / "run").close(status)
    set_process(tmp_path / "run", replace(ProcessRecord.current(), created_unix_s=1.0, created_ticks=1))
    assert open_run(tmp_path / "run").status == status


# Snapshots


def test_a_run_is_a_snapshot_until_it_is_reloaded(tmp_path: Path):
    writer = write_run(tmp_path / "run", samples=10)
    run = open_run(tmp_path / "run")
    totals = open_run(tmp_path / "run").total_histograms()
    writer.add_tensors([tensor_record(8, "dense", name="1")])
    for step in range(10, 40):
        writer.add_sample(sample_record(step), *random_arrays(9, seed=step))
    writer.close("finished")
    assert (len(run.samples), len(run.tensors), run.status) == (10, 8, "running")
    assert run.scalars.shape == (10, 8)  # read only now
    assert (run.total_histograms() == totals).all()
    new = run.reload()
    assert (len(new.samples), len(new.tensors), new.status) == (40, 9, "finished")
    assert new.scalars.shape == (40, 9)


def test_a_run_that_was_replaced_is_told(tmp_path: Path):
    write_run(tmp_path / "run", samples=10).close("finished")
    run = open_run(tmp_path / "run")
    RunWriter.create(tmp_path / "run", run_record(), overwrite=True)
    with pytest.raises(RunDirectoryError, match=r"was thinned out or replaced while it was read\. Open the run again"):
        _ = run.scalars


def test_reading_leaves_no_file_behind(tmp_path: Path):
    write_run(tmp_path / "run").close("finished")
    _ = open_run(tmp_path / "run").scalars
    assert {file.name for file in (tmp_path / "run").iterdir()} == {"run.yaml", "worker-0.sqlite"}


# Several workers


def test_workers_are_put_together(tmp_path: Path):
    """Layers and tensors by name, samples by step, what PrecScope cost one of them on average."""
    writer = write_run(tmp_path / "run", samples=2, layers=("conv", "dense"))
    writer.set_costs([CostRecord("read", 2, 10), CostRecord("write", 1, 1)])
    writer.add_notice(NoticeRecord(None, "info", "probes", "zero"))
    writer.close("finished")
    other = write_run(tmp_path / "other", samples=3, layers=("dense", "head"))
    other.set_costs([CostRecord("read", 3, 5)])
    other.add_notice(NoticeRecord(None, "info", "probes", "one"))
    other.close("finished")
    (tmp_path / "other" / "worker-0.sqlite").rename(tmp_path / "run" / "worker-1.sqlite")

    run = open_run(tmp_path / "run")
    assert {layer.id for layer in run.layers} == {"conv", "dense", "head"}
    assert [(t.index, t.layer) for t in run.tensors] == list(enumerate(["conv"] * 4 + ["dense"] * 4 + ["head"] * 4))
    assert [(s.index, s.step) for s in run.samples] == [(0, 0), (1, 1), (2, 2)]
    assert set(run.costs) == {CostRecord("read", 3, 8), CostRecord("write", 1, 0)}
    assert [notice.message for notice in run.notices] == ["worker 0: zero", "worker 1: one"]
    assert (run.scalars["count"] > 0).tolist() == [[True] * 12] * 2 + [[False] * 4 + [True] * 8]
    assert (run.scalars[1, :4] == random_arrays(8, seed=1)[0][:4]).all()  # worker 0 alone has "conv"
    both = [random_arrays(8, seed=1)[0][4:], random_arrays(8, seed=1)[0][:4]]
    assert (run.scalars[1, 4:8] == merge_scalars(both)).all()
    assert (run.histograms(2)[4:] == random_arrays(8, seed=2)[1]).all()
    dense_in_0 = [random_arrays(8, seed=seed)[1][4] for seed in range(2)]
    dense_in_1 = [random_arrays(8, seed=seed)[1][0] for seed in range(3)]
    assert (run.total_histograms()[4] == np.sum(dense_in_0 + dense_in_1, axis=0)).all()


def test_a_tensor_that_a_new_trace_added_again_is_another_one(tmp_path: Path):
    writer = write_run(tmp_path / "run", samples=1, layers=("conv",))
    writer.add_tensors([tensor_record(4, "conv", kind="activation", shape=(64, 3))])
    writer.add_sample(sample_record(1), *random_arrays(5, seed=1))
    run = open_run(tmp_path / "run")
    assert [tensor.index for tensor in run.tensors] == [0, 1, 2, 3, 4]
    assert (run.scalars[1] == random_arrays(5, seed=1)[0]).all()


# Damage


def test_a_newer_database_says_so(tmp_path: Path):
    write_run(tmp_path / "run").close("finished")
    change_database(tmp_path / "run", "UPDATE meta SET value = '2' WHERE name = 'schema_version'")
    words = r"newer PrecScope: its worker-0\.sqlite has format version 2, this one reads up to 1"
    with pytest.raises(RunDirectoryError, match=words):
        open_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("DROP TABLE meta", "cannot be read .no such table: meta"),
        ("DROP TABLE layers", "cannot be read .no such table: layers"),
        ("DELETE FROM meta WHERE name = 'schema_version'", "holds no schema_version"),
        ("UPDATE meta SET value = 'x' WHERE name = 'schema_version'", "holds no schema_version"),
        ("UPDATE meta SET value = '[]' WHERE name = 'scalar_fields'", "has other scalar_fields than version 1"),
        ("UPDATE layers SET inputs = '[1'", "cannot be read"),
    ],
)
def test_a_database_that_is_not_what_was_written(tmp_path: Path, statement: str, words: str):
    write_run(tmp_path / "run").close("finished")
    change_database(tmp_path / "run", statement)
    with pytest.raises(RunDirectoryError, match=rf"is damaged: its worker-0\.sqlite {words}"):
        open_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("scalars", b"x" * (SCALAR_DTYPE.itemsize + 1)),
        ("scalars", b"\0" * (SCALAR_DTYPE.itemsize * 9)),  # nine of eight tensors
        ("histograms", b"no zlib"),
        ("tensor_indices", b"\1\0\0"),
    ],
)
def test_arrays_that_are_not_what_was_written(tmp_path: Path, column: str, value: bytes):
    write_run(tmp_path / "run").close("finished")
    change_database(tmp_path / "run", f"UPDATE samples SET {column} = ?", value)
    run = open_run(tmp_path / "run")
    with pytest.raises(RunDirectoryError, match=r"is damaged: its worker-0\.sqlite"):
        _ = run.scalars, run.total_histograms()


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"SQLite format 3\0" + b"\xff" * 5000, b"hello" * 500])
def test_a_database_that_is_none(tmp_path: Path, content: bytes):
    write_run(tmp_path / "run").close("finished")
    (tmp_path / "run" / "worker-0.sqlite").write_bytes(content)
    with pytest.raises(RunDirectoryError, match=r"is damaged: its worker-0\.sqlite cannot be read"):
        open_run(tmp_path / "run")


def test_a_truncated_database_is_told(tmp_path: Path):
    """Cut at any length, reading never crashes and never returns another number."""
    write_run(tmp_path / "run", samples=20).close("finished")
    file = tmp_path / "run" / "worker-0.sqlite"
    whole = file.read_bytes()
    for length in (*range(0, len(whole), 1000), len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(RunDirectoryError, match="is damaged"):
            _ = open_run(tmp_path / "run").scalars


def test_a_missing_database(tmp_path: Path):
    write_run(tmp_path / "run").close("finished")
    (tmp_path / "run" / "worker-0.sqlite").unlink()
    with pytest.raises(RunDirectoryError, match=r"is damaged: its worker-0\.sqlite is missing"):
        open_run(tmp_path / "run")


def test_a_run_that_was_killed_before_its_database_was_made_is_empty(tmp_path: Path):
    write_run_file(tmp_path, run_record(), replace(ProcessRecord.current(), created_unix_s=1.0, created_ticks=1))
    run = open_run(tmp_path)
    assert (run.status, run.samples, run.tensors) == ("killed", (), ())
    assert run.scalars.shape == (0, 0)
    assert run.total_histograms().shape == (0, HISTOGRAM_BINS)


def test_the_file_names_its_own_fields(tmp_path: Path):
    write_run(tmp_path / "run")
    database = sqlite3.connect(tmp_path / "run" / "worker-0.sqlite")
    meta = dict(database.execute("SELECT name, value FROM meta"))
    database.close()
    assert np.dtype([tuple(item) for item in json.loads(meta["scalar_fields"])]) == SCALAR_DTYPE
    assert len(json.loads(meta["histogram_exponents"])) == HISTOGRAM_BINS
