"""A run that is read while it is written, after its process was killed, from a full disk and from a read-only place."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from precscope.errors import RunDirectoryError
from precscope.reader import Run, open_run
from precscope.records import NoticeRecord
from precscope.writer import RunWriter
from tests.core_fixtures import (
    as_plain_user,
    public_directory,
    random_arrays,
    run_record,
    sample_record,
    tensor_record,
)
from tests.writing_process import TENSORS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def check_contents(run: Run) -> None:
    """Check that every sample is whole: the writing process writes the same arrays each time."""
    scalars, histograms = random_arrays(TENSORS, seed=1)
    assert run.scalars.shape == (len(run.samples), TENSORS)
    assert (run.scalars == scalars).all()
    assert (run.total_histograms() == histograms * len(run.samples)).all()
    assert [sample.step for sample in run.samples] == list(range(len(run.samples)))


@contextmanager
def writing_process(repository: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.writing_process", *arguments]
    with subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read_all(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.read()


def wait_for_samples(process: subprocess.Popen[str], samples: int) -> None:
    assert process.stdout is not None
    assert f"{samples}\n" in process.stdout, f"The process ended before it had written {samples} samples."


def killed_run(repository: Path, directory: Path) -> int:
    """Write a run in another process, kill it, and return the number of samples that it told of."""
    with writing_process(repository, str(directory)) as process:
        wait_for_samples(process, 40)
        process.send_signal(signal.SIGKILL)
        later = read_all(process).split()
    return int(["40", *later][-1])


# Killed


def test_a_run_that_was_killed_holds_every_sample_that_was_committed(repository: Path, tmp_path: Path):
    told = killed_run(repository, tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert run.status == "killed"
    assert told <= len(run.samples) <= told + 1  # it may be killed between the commit and the word
    check_contents(run)


def test_a_run_that_was_killed_can_be_replaced(repository: Path, tmp_path: Path):
    killed_run(repository, tmp_path / "run")
    RunWriter.create(tmp_path / "run", run_record(), overwrite=True).close("finished")
    assert open_run(tmp_path / "run").samples == ()


# Read while it is written


def test_a_run_can_be_read_while_another_process_writes_it(repository: Path, tmp_path: Path):
    with writing_process(repository, str(tmp_path / "run")) as process:
        counts = []
        for samples in (1, 20, 40, 100):
            wait_for_samples(process, samples)
            run = open_run(tmp_path / "run")
            assert run.status == "running"
            check_contents(run)
            counts.append(len(run.samples))
            assert counts[-1] >= samples
    assert counts == sorted(counts)


def test_a_reader_at_work_stops_neither_writing_nor_closing(tmp_path: Path):
    writer = RunWriter.create(tmp_path / "run", run_record())
    writer.add_tensors([tensor_record(0)])
    writer.add_sample(sample_record(0), *random_arrays(1, seed=0))
    reader = sqlite3.connect(f"file:{tmp_path}/run/worker-0.sqlite?mode=ro", uri=True, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM samples").fetchone() == (1,)
    writer.add_sample(sample_record(1), *random_arrays(1, seed=1))
    writer.close("finished")
    assert reader.execute("SELECT count(*) FROM samples").fetchone() == (1,)
    reader.close()
    run = open_run(tmp_path / "run")
    assert (run.status, len(run.samples)) == ("finished", 2)


def test_several_threads_write_one_run(tmp_path: Path):
    """The session's thread writes samples while others have something to say."""
    writer = RunWriter.create(tmp_path / "run", run_record())
    writer.add_tensors([tensor_record(0)])

    def complain(source: str) -> None:
        for number in range(20):
            writer.add_notice(NoticeRecord(number, "info", source, "message"))

    threads = [Thread(target=complain, args=(f"thread {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for step in range(20):
        writer.add_sample(sample_record(step), *random_arrays(1, seed=step))
    for thread in threads:
        thread.join()
    writer.close("finished")
    run = open_run(tmp_path / "run")
    assert len(run.notices) == 80
    assert len(run.samples) == 20


# Full disk


def test_a_full_disk_is_told_and_what_was_committed_stays(repository: Path, tmp_path: Path):
    """The system refuses files above 300 kB, which SQLite meets as it meets a full disk."""
    with writing_process(repository, str(tmp_path / "run"), "300000") as process:
        *counts, message = read_all(process).splitlines()
        assert process.wait() == 0
    assert message.startswith(f"The disk of '{tmp_path}/run' is full")
    assert "What was written before is intact" in message
    run = open_run(tmp_path / "run")
    assert len(run.samples) == len(counts) > 0
    assert run.status == "finished"
    check_contents(run)


def test_a_failed_call_stores_nothing_and_later_ones_may_succeed(tmp_path: Path):
    writer = RunWriter.create(tmp_path / "run", run_record())
    writer.add_tensors([tensor_record(index, name=str(index)) for index in range(TENSORS)])
    arrays = random_arrays(TENSORS, seed=1)
    writer.add_sample(sample_record(0), *arrays)
    limit_pages(writer, 1)  # SQLite takes the pages that there are
    with pytest.raises(RunDirectoryError, match=r"is full .* cannot grow"):
        writer.add_sample(sample_record(1), *arrays)
    assert len(open_run(tmp_path / "run").samples) == 1
    limit_pages(writer, 100_000)
    writer.add_sample(sample_record(1), *arrays)
    run = open_run(tmp_path / "run")
    assert len(run.samples) == 2
    check_contents(run)


def limit_pages(writer: RunWriter, pages: int) -> None:
    assert writer._connection is not None
    writer._connection.execute(f"PRAGMA max_page_count = {pages}")


# Read-only


@pytest.fixture
def public_tmp_path() -> Iterator[Path]:
    with public_directory() as directory:
        yield directory


def finished_run(repository: Path, directory: Path) -> None:
    writer = RunWriter.create(directory, run_record())
    writer.add_tensors([tensor_record(index, name=str(index)) for index in range(TENSORS)])
    for step in range(5):
        writer.add_sample(sample_record(step), *random_arrays(TENSORS, seed=1))
    writer.close("finished")


def finished_under_a_reader(repository: Path, directory: Path) -> None:
    """Leave a file that says it has a log, but has none."""
    finished_run(repository, directory)
    database = sqlite3.connect(directory / "worker-0.sqlite")
    database.execute("PRAGMA journal_mode = WAL")
    database.close()


def killed_without_index(repository: Path, directory: Path) -> None:
    """Leave a log whose index was not copied with it."""
    killed_run(repository, directory)
    (directory / "worker-0.sqlite-shm").unlink()


@pytest.mark.parametrize("write", [finished_run, finished_under_a_reader, killed_run, killed_without_index])
def test_a_read_only_directory_can_be_read(
    repository: Path, public_tmp_path: Path, write: Callable[[Path, Path], object]
):
    directory = public_tmp_path / "run"
    write(repository, directory)
    directory.chmod(0o555)
    before = {file.name for file in directory.iterdir()}
    with as_plain_user():
        run = open_run(directory)
        check_contents(run)
    assert len(run.samples) >= 5
    assert {file.name for file in directory.iterdir()} == before


def test_a_database_that_may_not_be_read(repository: Path, public_tmp_path: Path):
    finished_run(repository, public_tmp_path / "run")
    (public_tmp_path / "run" / "worker-0.sqlite").chmod(0)
    with as_plain_user(), pytest.raises(RunDirectoryError, match=r"worker-0\.sqlite' cannot be opened: .* permissions"):
        open_run(public_tmp_path / "run")


# File systems without a write-ahead log


@pytest.fixture
def no_wal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let SQLite lock with files, as on a network file system without shared memory: it then refuses WAL."""
    connect = sqlite3.connect

    def connect_with_lock_files(path: Any, **keywords: Any) -> sqlite3.Connection:
        uri = path if keywords.pop("uri", False) else f"file:{path}?mode=rwc"
        return connect(f"{uri}&vfs=unix-dotfile", uri=True, **keywords)

    monkeypatch.setattr("precscope.database.sqlite3.connect", connect_with_lock_files)


@pytest.mark.usefixtures("no_wal")
def test_without_a_log_a_run_is_written_and_read_all_the_same(tmp_path: Path):
    writer = RunWriter.create(tmp_path / "run", run_record())
    writer.add_tensors([tensor_record(index, name=str(index)) for index in range(TENSORS)])
    for step in range(20):
        writer.add_sample(sample_record(step), *random_arrays(TENSORS, seed=1))
        if step % 10 == 0:
            check_contents(open_run(tmp_path / "run"))
    assert not list((tmp_path / "run").glob("*-wal"))
    writer.close("finished")
    run = open_run(tmp_path / "run")
    assert len(run.samples) == 20
    check_contents(run)


def test_a_transaction_that_a_kill_left_half_written_is_undone(public_tmp_path: Path):
    """Without WAL the old pages lie in a journal; a reader that may not write must not see the new ones."""
    directory = public_tmp_path / "run"
    writer = RunWriter.create(directory, run_record())
    writer.add_tensors([tensor_record(0)])
    writer.close("finished")
    database = sqlite3.connect(directory / "worker-0.sqlite", isolation_level=None)
    database.execute("PRAGMA cache_size = 1")  # so that pages are written before the commit
    database.execute("BEGIN")
    database.execute("UPDATE tensors SET layer = 'half'")
    database.executemany("INSERT INTO notices VALUES (0, 'info', ?, 'half')", [("x" * 3000,)] * 50)
    half = public_tmp_path / "half"
    shutil.copytree(directory, half)  # what a kill would leave
    database.close()
    half.chmod(0o555)
    with as_plain_user():
        run = open_run(half)
    assert (half / "worker-0.sqlite-journal").stat().st_size > 0
    assert run.notices == ()
    assert run.tensors[0].layer == "dense"
