from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import yaml

from precscope.errors import RunDirectoryError
from precscope.run_file import RUN_FILE, ProcessRecord, read_run_file, write_run_file
from precscope.rundir import create_run_directory, find_run_directory, worker_file, worker_files
from tests.core_fixtures import as_plain_user, public_directory, run_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def public_tmp_path() -> Iterator[Path]:
    with public_directory() as directory:
        yield directory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A directory that holds a run which has ended."""
    directory = create_run_directory(tmp_path / "run")
    write_run_file(directory, run_record(status="finished"), ProcessRecord.current())
    for name in (
        "worker-0.sqlite",
        "worker-0.sqlite-wal",
        "worker-0.sqlite-shm",
        "worker-12.sqlite",
        "worker-1.sqlite.part",
    ):
        (directory / name).write_bytes(b"data")
    return directory


def change_run_file(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = yaml.safe_load((directory / RUN_FILE).read_text())
    change(content)
    (directory / RUN_FILE).write_text(yaml.safe_dump(content, explicit_end=True))


# Creating


def test_parents_are_created(tmp_path: Path):
    directory = create_run_directory(tmp_path / "runs" / "today" / "mnist")
    assert directory.is_dir()
    assert list(directory.iterdir()) == []


def test_an_empty_directory_is_taken(tmp_path: Path):
    assert create_run_directory(str(tmp_path)) == tmp_path


def test_the_home_directory_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert create_run_directory("~/run") == tmp_path / "run"


def test_a_directory_that_is_not_empty_is_kept(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(RunDirectoryError, match=r"exists and is not empty; .* pass overwrite=True"):
        create_run_directory(tmp_path)


def test_overwrite_does_not_touch_what_is_no_run(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("all of it")
    (tmp_path / "worker-0.sqlite").write_text("someone else's")
    with pytest.raises(RunDirectoryError, match=r"not a PrecScope run directory .* overwrite=True does not touch it"):
        create_run_directory(tmp_path, overwrite=True)
    assert len(list(tmp_path.iterdir())) == 2


def test_overwrite_does_not_touch_another_programs_run_yaml(tmp_path: Path):
    (tmp_path / RUN_FILE).write_text("jobs: [build]\n")
    with pytest.raises(RunDirectoryError, match=r"not a PrecScope run directory: its run.yaml does not say"):
        create_run_directory(tmp_path, overwrite=True)
    assert (tmp_path / RUN_FILE).read_text() == "jobs: [build]\n"


def test_overwrite_deletes_what_precscope_wrote_and_nothing_else(run: Path):
    kept = {"notes.md", "worker-notes.sqlite", "run.yaml.bak", "worker-0.sqlite.gz", "worker-x.sqlite"}
    for name in kept:
        (run / name).write_text("mine")
    create_run_directory(run, overwrite=True)
    assert {file.name for file in run.iterdir()} == kept


def test_overwrite_does_not_touch_a_run_that_another_process_writes(run: Path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        process = ProcessRecord(socket.gethostname(), other.pid, psutil.Process(other.pid).create_time())
        assert process.is_alive() is True
        write_run_file(run, run_record(status="running"), process)
        with pytest.raises(RunDirectoryError, match=f"is being written by process {other.pid}"):
            create_run_directory(run, overwrite=True)
        other.communicate(b"\n")
    create_run_directory(run, overwrite=True)
    assert list(run.iterdir()) == []


def test_overwrite_does_not_touch_a_run_of_a_newer_format(run: Path):
    change_run_file(run, lambda content: content.update(version=2))
    with pytest.raises(RunDirectoryError, match="newer PrecScope"):
        create_run_directory(run, overwrite=True)
    assert worker_file(run, 0).exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_refused(tmp_path: Path, overwrite: bool):
    file = tmp_path / "run"
    file.write_text("text")
    with pytest.raises(RunDirectoryError, match="is a file; expected a new directory"):
        create_run_directory(file, overwrite)


def test_a_parent_that_is_a_file_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(RunDirectoryError, match=r"A parent of .* is a file"):
        create_run_directory(tmp_path / "file" / "run")


def test_a_place_that_is_not_writable(public_tmp_path: Path):
    public_tmp_path.chmod(0o555)
    with as_plain_user():
        with pytest.raises(RunDirectoryError, match=r"cannot be used: Permission denied. .* you may read and write"):
            create_run_directory(public_tmp_path / "run")
        with pytest.raises(RunDirectoryError, match=r"cannot be used: Permission denied. .* you may read and write"):
            create_run_directory(public_tmp_path)


def test_a_name_that_is_too_long(tmp_path: Path):
    with pytest.raises(RunDirectoryError, match="cannot be used: File name too long"):
        create_run_directory(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/run",
        "gs://bucket/run",
        "https://host/run",
        "hdfs://run",
        "file:///tmp/run",
        Path("s3://bucket/run"),
    ],
)
def test_a_url_is_refused(url: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunDirectoryError, match=r"is a URL; .* Write the run to a local path and copy it afterwards"):
        create_run_directory(url)
    with pytest.raises(RunDirectoryError, match="is a URL"):
        find_run_directory(url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [None, 3, b"run", "", "a\0b"])
def test_what_is_no_path_is_refused(path: Any):
    with pytest.raises(RunDirectoryError, match=r"A run directory is named by a path, such as 'runs/mnist'; received"):
        create_run_directory(path)


# run.yaml


def test_the_record_survives(tmp_path: Path):
    record = run_record(
        error="ValueError: grüße 😀 \udc80 'quoted': [1]\nsecond line",
        options={"layers": ["a"], "every": None, "overhead_budget": 1e-7},
        model={"parameters": 2**40, "name": "3.10", "compiled": True},
    )
    process = ProcessRecord("host", 42, 1_700_000_000.125)
    write_run_file(tmp_path, record, process)
    assert read_run_file(tmp_path) == (record, process)


def test_values_that_yaml_does_not_know_become_plain(tmp_path: Path):
    model = {"parameters": np.int64(3), "loss": np.float32(0.5), "path": Path("a/b"), "shape": (1, None), 4: "key"}
    write_run_file(tmp_path, run_record(model=model), ProcessRecord.current())
    read = read_run_file(tmp_path)[0].model
    assert read == {"parameters": 3, "loss": 0.5, "path": "a/b", "shape": [1, None], "4": "key"}


def test_the_format_is_the_first_thing_in_the_file(tmp_path: Path):
    write_run_file(tmp_path, run_record(), ProcessRecord.current())
    assert (tmp_path / RUN_FILE).read_text().startswith("format: precscope-run\nversion: 1\n")


def test_a_full_disk_keeps_the_old_file(tmp_path: Path):
    write_run_file(tmp_path, run_record(status="running"), ProcessRecord.current())
    (tmp_path / f"{RUN_FILE}.part").symlink_to("/dev/full")
    with pytest.raises(RunDirectoryError, match=r"The disk of .* is full .* Free some space"):
        write_run_file(tmp_path, run_record(status="finished"), ProcessRecord.current())
    assert read_run_file(tmp_path)[0].status == "running"
    assert [file.name for file in tmp_path.iterdir()] == [RUN_FILE]


def test_keys_that_a_later_version_added_are_left_out(run: Path):
    change_run_file(run, lambda content: content["run"].update(mood="good"))
    assert read_run_file(run)[0] == run_record(status="finished")


# Finding and reading


def test_nothing_there(tmp_path: Path):
    with pytest.raises(RunDirectoryError, match=r"There is no run directory at .*: nothing exists there"):
        find_run_directory(tmp_path / "none")


def test_a_file_in_a_run_directory_is_not_the_directory(run: Path):
    with pytest.raises(RunDirectoryError, match=r"is a file, not a run directory. Give the directory that holds it"):
        find_run_directory(run / RUN_FILE)


def test_a_directory_without_run_yaml_names_the_runs_in_it(run: Path):
    with pytest.raises(RunDirectoryError, match=r"not a PrecScope run directory: it has no run\.yaml.*in it: run\?"):
        find_run_directory(run.parent)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is damaged: its run.yaml is empty"),
        (b"format: precscope-run\nversion: 1\nrun: {name: [", "is damaged: its run.yaml is not valid YAML"),
        (b"\x00\xff\xfe", "is damaged: its run.yaml is not valid YAML"),
        (b"format: precscope-run\nversion: 1\n...\n", "is damaged: its run.yaml lacks 'run'"),
        (
            b"format: precscope-run\nversion: 1\nrun: {name: x}\nprocess: {}\n...\n",
            "is damaged: its run.yaml lacks 'status'",
        ),
        (b"format: precscope-run\nversion: one\n", "is damaged: its run.yaml has the format version 'one'"),
        (
            b"format: precscope-run\nversion: 2\nwhatever: 3\n",
            "newer PrecScope: its run.yaml has format version 2, this one reads up to 1",
        ),
        (b"format: other\nversion: 1\n", "is not a PrecScope run directory: its run.yaml does not say"),
        (b"[1, 2]\n", "is not a PrecScope run directory"),
        (b"just text\n", "is not a PrecScope run directory"),
    ],
)
def test_a_foreign_a_newer_and_a_damaged_file_are_told_apart(tmp_path: Path, content: bytes, words: str):
    (tmp_path / RUN_FILE).write_bytes(content)
    with pytest.raises(RunDirectoryError, match=words):
        read_run_file(tmp_path)


@pytest.mark.parametrize("part", ["run", "process"])
@pytest.mark.parametrize("value", [None, 3, "text", []])
def test_a_part_of_another_type_is_damage(run: Path, part: str, value: Any):
    change_run_file(run, lambda content: content.update({part: value}))
    with pytest.raises(RunDirectoryError, match="is damaged"):
        read_run_file(run)


def test_every_cut_of_the_file_is_told_in_words(run: Path):
    """A truncated run.yaml is damage or no run, never a crash."""
    content = (run / RUN_FILE).read_bytes()
    for length in range(len(content) - 1):
        (run / RUN_FILE).write_bytes(content[:length])
        with pytest.raises(RunDirectoryError, match=r"is damaged|is not a PrecScope run directory"):
            read_run_file(run)


def test_a_file_that_may_not_be_read(public_tmp_path: Path):
    write_run_file(public_tmp_path, run_record(), ProcessRecord.current())
    (public_tmp_path / RUN_FILE).chmod(0)
    with as_plain_user(), pytest.raises(RunDirectoryError, match=r"run.yaml' cannot be used: Permission denied"):
        read_run_file(public_tmp_path)


def test_worker_files_are_ordered_by_number(run: Path):
    (run / "worker-2.sqlite").touch()
    assert [file.name for file in worker_files(run)] == ["worker-0.sqlite", "worker-2.sqlite", "worker-12.sqlite"]


# The recording process


def test_this_process_is_alive():
    assert ProcessRecord.current().is_alive() is True
    assert ProcessRecord.current().pid == os.getpid()


def test_a_process_that_ended_is_not_alive():
    process = subprocess.Popen([sys.executable, "-c", ""])
    record = replace(ProcessRecord.current(), pid=process.pid)
    process.wait()
    assert record.is_alive() is False


def test_another_process_with_the_same_id_is_not_the_one():
    current = ProcessRecord.current()
    assert replace(current, created_unix_s=current.created_unix_s - 1000, created_ticks=None).is_alive() is False


def test_another_hosts_process_cannot_be_seen():
    assert replace(ProcessRecord.current(), host="elsewhere").is_alive() is None


def test_a_run_goes_on_when_the_program_changes_its_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    directory = create_run_directory("runs/x")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert directory == tmp_path / "runs" / "x"
    assert directory.is_dir()
