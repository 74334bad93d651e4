"""Where runs are written under difficulties: forked processes, clocks that are set, file systems without locks."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from precscope import sqlite_files
from precscope.reader import open_run
from precscope.run_file import ProcessRecord
from precscope.steady_clock import SteadyClock
from precscope.writer import RunWriter
from tests.core_fixtures import random_arrays, run_record, sample_record, tensor_record

# Forked processes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_processes_leave_the_run_alone(repository: Path, tmp_path: Path):
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "tests.forking_process", str(tmp_path)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str([0] * 12), done.stderr
    run = open_run(tmp_path / "run")
    assert (run.status, len(run.samples)) == ("finished", 60)
    assert [notice.step for notice in run.notices] == list(range(len(run.notices)))  # none is lost, none is a child's
    assert {notice.source for notice in run.notices} == {"thread"}
    for sample in range(0, 60, 7):
        assert (run.scalars[sample] == random_arrays(1, seed=sample)[0]).all()


# Clocks that are set


def test_the_runs_clock_does_not_follow_one_that_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started = time.time()
    writer = RunWriter.create(tmp_path / "run", run_record(started_unix_s=started))
    monkeypatch.setattr(time, "time", lambda: started - 3600.0)  # an hour back
    assert 0 <= writer.now_unix_s() - started < 60
    writer.close("finished")
    ended = open_run(tmp_path / "run").record.ended_unix_s
    assert ended is not None
    assert 0 <= ended - started < 60


def test_a_steady_clock_carries_the_start_on():
    now = iter([100.0, 100.0, 107.5])
    clock = SteadyClock(1_000.0, monotonic_s=lambda: next(now))
    assert [clock(), clock()] == [1_000.0, 1_007.5]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_a_process_is_known_by_ticks_when_the_clock_was_set():
    own = ProcessRecord.current()
    assert replace(own, created_unix_s=own.created_unix_s - 7200.0).is_alive() is True
    assert replace(own, created_ticks=(own.created_ticks or 0) + 1).is_alive() is False
    assert replace(own, boot="another").is_alive() is False


def test_a_process_of_an_earlier_version_is_known_by_its_time():
    own = replace(ProcessRecord.current(), created_ticks=None, boot=None)
    assert own.is_alive() is True
    assert replace(own, created_unix_s=own.created_unix_s - 7200.0).is_alive() is False


# File systems


class Lockless(sqlite3.Connection):
    """A connection to a mount whose lock service does not answer."""

    is_nolock = False

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        needs_lock = sql.startswith(("BEGIN", "SELECT", "PRAGMA journal_mode", "INSERT", "CREATE"))
        if needs_lock and not self.is_nolock:
            error = sqlite3.OperationalError("locking protocol")
            error.sqlite_errorname = "SQLITE_PROTOCOL"
            raise error
        return super().execute(sql, *parameters)


def test_without_locks_a_run_is_written_and_read_from_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    connect, names = sqlite3.connect, []

    def connect_without_locks(name: str, **keywords: Any) -> sqlite3.Connection:
        connection = connect(name, factory=Lockless, **keywords)
        assert isinstance(connection, Lockless)
        connection.is_nolock = "nolock=1" in name or "precscope-" in name  # a copy lies on a local disk
        names.append(name)
        return connection

    monkeypatch.setattr("precscope.sqlite_files.sqlite3.connect", connect_without_locks)
    writer = RunWriter.create(tmp_path / "run", run_record())
    writer.add_tensors([tensor_record(0)])
    for step in range(5):
        writer.add_sample(sample_record(step), *random_arrays(1, seed=step))
    run = open_run(tmp_path / "run")
    assert len(run.samples) == 5
    assert (run.scalars[4] == random_arrays(1, seed=4)[0]).all()
    assert not list((tmp_path / "run").glob("*-wal"))
    writer.close("finished")
    assert open_run(tmp_path / "run").status == "finished"
    assert any("nolock=1" in name for name in names)
    assert any("precscope-" in name for name in names)


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /home rw,relatime shared:2 - nfs4 server:/home rw,vers=4.2
31 30 254:1 / /home/me/local\\040disk rw - xfs /dev/vdb rw
32 22 0:41 / /data rw - fuse.sshfs host:/data rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/tmp/run/worker-0.sqlite", False),
        ("/home/me/run/worker-0.sqlite", True),
        ("/home/me/local disk/run/worker-0.sqlite", False),
        ("/data/run/worker-0.sqlite", True),
        ("/database/run/worker-0.sqlite", False),
    ],
)
def test_network_mounts_are_known(tmp_path: Path, path: str, expected: bool):
    (tmp_path / "mountinfo").write_text(MOUNTS)
    assert sqlite_files._is_on_network(Path(path), tmp_path / "mountinfo") is expected


def test_a_system_without_a_table_of_mounts(tmp_path: Path):
    assert sqlite_files._is_on_network(tmp_path / "file", tmp_path / "missing") is False


def test_on_a_network_mount_the_older_journal_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A log may seem to work there, but its index never reaches other hosts."""
    monkeypatch.setattr(sqlite_files, "_is_on_network", lambda path: True)
    writer = RunWriter.create(tmp_path / "run", run_record())
    writer.add_tensors([tensor_record(0)])
    writer.add_sample(sample_record(0), *random_arrays(1, seed=0))
    assert not list((tmp_path / "run").glob("*-wal"))
    assert len(open_run(tmp_path / "run").samples) == 1
    writer.close("finished")


def test_a_copy_is_made_anew_where_the_file_was_written_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "worker-0.sqlite"
    file.write_bytes(b"old")
    copy, copies = shutil.copyfile, list[Path]()

    def copy_while_it_is_written(source: Path, target: Path) -> None:
        copy(source, target)
        copies.append(source)
        if len(copies) == 1:
            file.write_bytes(b"newer")

    monkeypatch.setattr("precscope.sqlite_files.shutil.copyfile", copy_while_it_is_written)
    with ExitStack() as stack:
        assert sqlite_files._copy(file, stack).read_bytes() == b"newer"
    assert len(copies) == 2
