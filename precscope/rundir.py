"""A run directory: created, replaced, found, and what files it has."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from precscope.errors import RunDirectoryError
from precscope.run_failures import not_a_run, os_failure
from precscope.run_file import RUN_FILE, read_run_file

__all__ = [
    "KEPT_FOLDER",
    "create_run_directory",
    "delete_run_files",
    "find_run_directory",
    "local_path",
    "worker_file",
    "worker_files",
]

#: The folder of kept batches (`precscope.kept_batches`).
KEPT_FOLDER = "kept"

#: Every file that PrecScope writes into a run directory, and so may delete from it.
_OWN_FILE = re.compile(r"worker-\d+\.sqlite(\.part)?(-wal|-shm|-journal)?|(run|verification|policy)\.yaml(\.part)?")
_OWN_KEPT_FILE = re.compile(r"step-\d+\.npz(\.part)?")  # in the folder of kept batches
_WORKER_FILE = re.compile(r"worker-(\d+)\.sqlite")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one slash: pathlib folds the second; one letter is a Windows drive


def create_run_directory(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Create the run directory `path`, its parents too, and return it; an empty directory is taken as it is.

    Args:
        path: A local path; "~" is the home directory.
        overwrite: Delete the run that `path` holds: the files that PrecScope wrote, nothing else.

    Raises:
        RunDirectoryError: `path` is a URL or a file, holds something, cannot be written, or its disk is full.
    """
    directory = local_path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            _make_room(directory, overwrite)
        with tempfile.TemporaryFile(dir=directory):
            pass  # the one test of write access that is true for every user and file system
    except FileExistsError:
        raise RunDirectoryError(f"'{directory}' is a file; expected a new directory. Choose another path.") from None
    except OSError as error:
        raise os_failure(error, directory) from error
    return directory


def delete_run_files(directory: Path) -> None:
    """Delete every file that PrecScope wrote into `directory`, and nothing else.

    Raises:
        OSError: A file cannot be deleted.
    """
    kept = directory / KEPT_FOLDER
    if kept.is_dir():
        for file in [file for file in kept.iterdir() if _OWN_KEPT_FILE.fullmatch(file.name)]:
            file.unlink()
        with suppress(OSError):  # the user put something into it
            kept.rmdir()
    # run.yaml last, so that a deletion that was cut off leaves a directory that is still known as a run.
    for name in sorted((file.name for file in directory.iterdir() if _OWN_FILE.fullmatch(file.name)), reverse=True):
        (directory / name).unlink()


def find_run_directory(path: str | os.PathLike[str]) -> Path:
    """Return the directory `path` if it is a run directory.

    Raises:
        RunDirectoryError: There is nothing at `path`, or something else.
    """
    directory = local_path(path)
    if not directory.exists():
        raise RunDirectoryError(f"There is no run directory at '{directory}': nothing exists there. Check the path.")
    if not directory.is_dir():
        raise RunDirectoryError(f"'{directory}' is a file, not a run directory. Give the directory that holds it.")
    if not (directory / RUN_FILE).exists():
        raise not_a_run(directory, f"it has no {RUN_FILE}")
    return directory


def worker_file(directory: Path, worker: int) -> Path:
    """Return the path of a worker's database."""
    return directory / f"worker-{worker}.sqlite"


def worker_files(directory: Path) -> list[Path]:
    """Return the databases of all workers, by the worker's number.

    Raises:
        RunDirectoryError: The directory cannot be read.
    """
    try:
        numbered = {int(match[1]): file for file in directory.iterdir() if (match := _WORKER_FILE.fullmatch(file.name))}
    except OSError as error:
        raise os_failure(error, directory) from error
    return [numbered[number] for number in sorted(numbered)]


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return `path`, "~" expanded.

    Raises:
        RunDirectoryError: It is no path, or a URL.
    """
    try:
        text = os.fspath(path)
        if not isinstance(text, str) or not text or "\0" in text:
            raise TypeError
    except TypeError:
        raise RunDirectoryError(
            f"A run directory is named by a path, such as 'runs/mnist'; received {path!r} ({type(path).__name__})."
        ) from None
    if _URL.match(text):
        raise RunDirectoryError(
            f"'{text}' is a URL; expected a local path. Write the run to a local path and copy it afterwards."
        )
    return Path(text).expanduser()


def _make_room(directory: Path, overwrite: bool) -> None:
    """Delete the run in `directory`, if it is one, it may be overwritten and nobody is writing it."""
    if not overwrite:
        raise RunDirectoryError(
            f"'{directory}' exists and is not empty; expected a new or empty directory. "
            "Choose another path, or pass overwrite=True to replace the run that it holds."
        )
    if not (directory / RUN_FILE).is_file():
        raise RunDirectoryError(
            f"'{directory}' is not empty and not a PrecScope run directory (no {RUN_FILE}), so overwrite=True does "
            "not touch it. Choose another path, or empty it yourself."
        )
    record, process = read_run_file(directory)
    if record.status == "running" and process.is_alive() and process.pid != os.getpid():
        raise RunDirectoryError(
            f"The run in '{directory}' is being written by process {process.pid}, so overwrite=True does not touch "
            "it. Choose another path, or stop that process."
        )
    delete_run_files(directory)
