"""Batches kept in a run directory: what comes back, how many stay, what bad files get."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest

import precscope
from precscope.errors import RunDirectoryError
from precscope.kept_batches import KeptBatchWriter, TypedArray, kept_batches
from precscope.writer import RunWriter
from tests.core_fixtures import run_record

if TYPE_CHECKING:
    from pathlib import Path

MIB = 2**20


def batch_of(megabytes: float) -> np.ndarray:
    return np.zeros(int(megabytes * MIB), np.uint8)


def steps_in(directory: Path) -> list[int]:
    return [batch.step for batch in kept_batches(directory)]


def test_nested_structures_and_dtypes_come_back(tmp_path: Path):
    data: Any = (
        {"image": np.arange(6, dtype=np.float16).reshape(2, 3), "id": np.array([1, 2], np.int32)},
        [np.array([True, False]), None],
        np.float64(0.1),
        3,
        "text",
    )
    KeptBatchWriter(tmp_path, MIB).keep(12, data=data, weights={"dense/kernel": np.ones(2, np.float32)})
    (batch,) = kept_batches(tmp_path)
    assert (batch.step, batch.groups()) == (12, ("data", "weights"))
    loaded = batch.load()
    assert isinstance(loaded, tuple)
    assert isinstance(loaded[1], list)
    assert loaded[1][1] is None
    assert loaded[3:] == (3, "text")
    for given, read in [
        (data[0]["image"], loaded[0]["image"]),
        (data[0]["id"], loaded[0]["id"]),
        (data[1][0], loaded[1][0]),
        (np.asarray(data[2]), loaded[2]),
    ]:
        assert (read.dtype, read.shape) == (given.dtype, given.shape)
        assert (read == given).all()
    assert batch.load("weights")["dense/kernel"].tolist() == [1.0, 1.0]


def test_bfloat16_keeps_its_values_and_its_name(tmp_path: Path):
    every = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    KeptBatchWriter(tmp_path, MIB).keep(0, data=(every, every[:1].astype(np.float32)))
    (batch,) = kept_batches(tmp_path)
    first, second = batch.load_typed()
    assert isinstance(first, TypedArray)
    assert (first.dtype, second.dtype) == ("bfloat16", "float32")
    np.testing.assert_array_equal(first.array.view(np.uint32) >> 16, np.arange(2**16))
    np.testing.assert_array_equal(batch.load()[0], first.array)


def test_the_limit_is_kept_by_thinning_evenly(tmp_path: Path):
    writer = KeptBatchWriter(tmp_path, int(4.5 * MIB))
    for step in range(0, 1000, 10):
        writer.keep(step, data=batch_of(1))
        size = sum(file.stat().st_size for file in (tmp_path / "kept").iterdir())
        assert size < 5 * MIB
    steps = steps_in(tmp_path)
    assert len(steps) == 4
    assert (steps[0], steps[-1]) == (0, 990)
    older = np.diff(steps[:-1])  # the newest comes on top, however close it is
    assert max(older) <= 3 * min(older)


def test_of_two_the_newer_one_stays(tmp_path: Path):
    writer = KeptBatchWriter(tmp_path, int(1.5 * MIB))
    for step in (3, 7):
        writer.keep(step, data=batch_of(1))
    assert steps_in(tmp_path) == [7]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (batch_of(2), r"takes 2 MiB, more than keep_batches_mib = 1 allows for all of them. Raise it"),
        (np.array([b"a", b"bc"], object), r"/data is an array of dtype object, which cannot be kept"),
        ([object()], r"/data/0 is a object, no array"),
        ({1: np.zeros(1)}, r"/data has keys that are no strings: \[1\]"),
    ],
)
def test_what_cannot_be_kept(tmp_path: Path, data: Any, words: str):
    with pytest.raises(RunDirectoryError, match=words):
        KeptBatchWriter(tmp_path, MIB).keep(0, data=data)
    assert steps_in(tmp_path) == []


def test_a_file_that_is_damaged_or_gone(tmp_path: Path):
    writer = KeptBatchWriter(tmp_path, 10 * MIB)
    for step in range(3):
        writer.keep(step, data=batch_of(0.01))
    cut, other, gone = kept_batches(tmp_path)
    cut.path.write_bytes(cut.path.read_bytes()[:5000])
    np.savez(other.path, x=np.zeros(3))
    gone.path.unlink()
    for batch, words in ((cut, "is damaged"), (other, "is damaged"), (gone, "is gone: .* Open the run again")):
        with pytest.raises(RunDirectoryError, match=words):
            batch.load()
    writer.keep(9, data=batch_of(0.01))
    with pytest.raises(RunDirectoryError, match="holds no group 'weights', but 'data'"):
        kept_batches(tmp_path)[-1].load("weights")


def test_a_run_shows_its_batches_and_overwriting_deletes_them(tmp_path: Path):
    writer = RunWriter.create(tmp_path / "run", run_record())
    KeptBatchWriter(writer.path, MIB).keep(4, data=np.ones(3))
    writer.close("finished")
    assert [batch.step for batch in precscope.open_run(writer.path).kept_batches] == [4]
    (writer.path / "kept" / "notes.txt").write_text("mine")
    RunWriter.create(writer.path, run_record(), overwrite=True).close("finished")
    assert [file.name for file in (writer.path / "kept").iterdir()] == ["notes.txt"]
    assert precscope.open_run(writer.path).kept_batches == ()
