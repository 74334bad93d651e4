"""What can go wrong with a run directory, in words: each function returns the `RunDirectoryError` to raise."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from precscope.errors import RunDirectoryError

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

__all__ = ["damaged", "newer_format", "not_a_run", "os_failure", "sqlite_failure"]


def not_a_run(directory: Path, reason: str) -> RunDirectoryError:
    """Return the error for a directory that no PrecScope wrote; it names the runs inside."""
    inside = sorted(child.parent.name for child in directory.glob("*/run.yaml"))[:5]
    hint = f" Did you mean one of the runs in it: {', '.join(inside)}?" if inside else " Check the path."
    return RunDirectoryError(f"'{directory}' is not a PrecScope run directory: {reason}.{hint}")


def newer_format(file: Path, found: int, known: int) -> RunDirectoryError:
    """Return the error for a file that a newer PrecScope wrote."""
    return RunDirectoryError(
        f"The run in '{file.parent}' was written by a newer PrecScope: its {file.name} has format version {found}, "
        f"this one reads up to {known}. Update with: pip install --upgrade precscope."
    )


def damaged(file: Path, reason: object) -> RunDirectoryError:
    """Return the error for a file that cannot be what PrecScope wrote; `reason` goes on after its name."""
    return RunDirectoryError(
        f"The run in '{file.parent}' is damaged: its {file.name} {reason}. Restore it from a copy, or record again."
    )


def os_failure(error: OSError, path: Path) -> RunDirectoryError:
    """Return what `error` means for the run directory, or its file, `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return RunDirectoryError(
            f"The disk of '{path}' is full ({error.strerror}). Free some space or choose another disk."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RunDirectoryError(
            f"'{path}' cannot be used: {error.strerror}. Choose a directory that you may read and write."
        )
    if error.errno == errno.ENOTDIR:
        return RunDirectoryError(f"A parent of '{path}' is a file, not a directory. Choose another path.")
    return RunDirectoryError(f"'{path}' cannot be used: {error.strerror or error}. Choose another path.")


def sqlite_failure(error: sqlite3.Error, file: Path) -> RunDirectoryError:
    """Return what `error` means for the worker's file `file`."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR_WRITE")):
        return RunDirectoryError(
            f"The disk of '{file.parent}' is full or takes no more ({error}), so {file.name} cannot grow. What was "
            "written before is intact; free some space or choose another disk."
        )
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
        return RunDirectoryError(f"'{file}' cannot be opened: {error}. Check its permissions.")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL", "SQLITE_IOERR")):
        return RunDirectoryError(
            f"'{file}' cannot be used: {error} ({name}). Some network file systems do this: write the run to a local "
            "disk and copy it afterwards."
        )
    return damaged(file, f"cannot be read ({error})")
