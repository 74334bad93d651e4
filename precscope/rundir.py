"""A run directory: created, replaced, found, and what files it has."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from precscope.database import open_database
from precscope.errors import RunDirectoryError
from precscope.run_failures import not_a_run, os_failure
from precscope.run_file import RUN_FILE, read_run_file
from precscope.worker_state import read_state

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "KEPT_FOLDER",
    "create_run_directory",
    "delete_run_files",
    "delete_worker_files",
    "find_run_directory",
    "local_path",
    "worker_file",
    "worker_files",
    "worker_number",
]

#: The folder of kept batches (`precscope.kept_batches`).
KEPT_FOLDER = "kept"

#: Every file that PrecScope writes into a run directory, and so may delete from it.
_OWN_FILE = re.compile(r"worker-\d+\.sqlite(\.part)?(-wal|-shm|-journal)?|(run|verification|policy)\.yaml(\.part)?")
_OWN_KEPT_FILE = re.compile(r"step-\d+\.npz(\.part)?")  # in the folder of kept batches
_WORKER_FILE = re.compile(r"worker-(\d+)\.sqlite")
_OTHERS_FILE = re.compile(r"worker-0*[1-9]\d*\.sqlite")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one slash: pathlib folds the second; one letter is a Windows drive


def create_run_directory(path: str | os.PathLike[str], overwrite: bool = False, worker: int = 0) -> Path:
    """Create the run directory `path`, its parents too, and return it; an empty directory is taken as it is.

    What is returned is absolute: the program may change its working directory while the run is written.

    Workers come in any order, and none waits for another: the first one makes the directory. Worker 0 replaces the run
    that is there; the others replace nothing but their own file.

    Args:
        path: A local path; "~" is the home directory.
        overwrite: Delete the run that `path` holds: the files that PrecScope wrote, nothing else.
        worker: Number of the worker that is to write.

    Raises:
        RunDirectoryError: `path` is a URL or a file, holds something, cannot be written, or its disk is full.
    """
    directory = local_path(path).absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _make_room_for(directory, overwrite, worker)
        with tempfile.TemporaryFile(dir=directory):
            pass  # the one test of write access that is true for every user and file system
    except FileExistsError:
        raise RunDirectoryError(f"'{directory}' is a file; expected a new directory. Choose another path.") from None
    except OSError as error:
        raise os_failure(error, directory) from error
    return directory


def delete_run_files(directory: Path, keep: Sequence[Path] = ()) -> None:
    """Delete every file that PrecScope wrote into `directory`, and nothing else.

    Args:
        directory: The run directory.
        keep: Databases to leave where they are, with their logs.

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
        if not any(name.startswith(file.name) for file in keep):
            (directory / name).unlink()


def delete_worker_files(directory: Path, worker: int) -> None:
    """Delete the database of one worker, with its logs.

    Raises:
        OSError: A file cannot be deleted.
    """
    for file in directory.glob(f"worker-{worker}.sqlite*"):
        if _OWN_FILE.fullmatch(file.name):
            file.unlink()


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


def worker_number(file: Path) -> int:
    """Return the number of the worker that writes the database `file`; 0 for a name that holds none."""
    match = _WORKER_FILE.fullmatch(file.name)
    return int(match[1]) if match else 0


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


def _make_room_for(directory: Path, overwrite: bool, worker: int) -> None:
    """Let `worker` find no file of its own, and worker 0 no run."""
    names = {file.name for file in directory.iterdir()}
    if worker and worker_file(directory, worker).name in names:
        if not overwrite:
            raise RunDirectoryError(
                f"'{worker_file(directory, worker)}' exists; expected a directory where worker {worker} wrote nothing. "
                "Choose another path, or pass overwrite=True to replace the run that is there."
            )
        delete_worker_files(directory, worker)
        return
    came_first = RUN_FILE not in names and all(map(_OTHERS_FILE.match, names))
    if not came_first and not (worker and RUN_FILE in names):
        _make_room(directory, overwrite)


def _of_the_next_run(directory: Path) -> list[Path]:
    """Return the databases of workers that are at work: they came before worker 0 did."""
    found = []
    for file in directory.iterdir():
        if file.name != worker_file(directory, 0).name and _WORKER_FILE.fullmatch(file.name):
            with suppress(RunDirectoryError), open_database(file) as connection:
                state = read_state(connection)
                if state is not None and state.status_now() == "running":
                    found.append(file)
    return found


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
    delete_run_files(directory, keep=_of_the_next_run(directory))
