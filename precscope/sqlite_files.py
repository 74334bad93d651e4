"""Opening SQLite files where file systems differ: with a log, with an older journal, without locks, read-only.

Local file systems take a write-ahead log, beside which others read freely. Its index lies in shared memory, which does
not reach other hosts: on a network mount the older journal is used, also where the log seems to work. Some mounts have
no locks at all. Each file has one writer, so that it can do without; a reader then copies what stands still.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path

__all__ = ["connect_to_read", "connect_to_write", "logs_of", "use_journal"]

#: How long either side waits for the other where the file system allows no WAL.
_BUSY_S = 10.0
#: What SQLite says where locks cannot be had; for a new file "busy" is one, too, for nobody else has it open.
_NO_LOCKS = ("SQLITE_BUSY", "SQLITE_PROTOCOL", "SQLITE_IOERR_LOCK", "SQLITE_IOERR_RDLOCK", "SQLITE_IOERR_CHECKRESERVED")
_NETWORK = ("9p", "afs", "beegfs", "ceph", "cifs", "fuse.sshfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "smb")
_MOST_COPIES = 20


def connect_to_write(path: Path) -> sqlite3.Connection:
    """Connect the one writer of `path`; the connection may be used from any one thread at a time."""
    connection = _connect(path, "mode=rwc")
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        connection.close()
        if not _is_about_locks(error):
            raise
        connection = _connect(path, "mode=rwc&nolock=1")
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def use_journal(connection: sqlite3.Connection, path: Path) -> None:
    """Use a write-ahead log, which lets others read meanwhile; where that cannot be, the older journal."""
    mode = None
    if not _is_on_network(path):
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError:
            mode = None
    if mode != "wal":
        connection.execute("PRAGMA journal_mode = TRUNCATE")


def connect_to_read(path: Path, stack: ExitStack) -> sqlite3.Connection:
    """Connect to `path` read-only, until the stack is closed, by the way that its file system allows."""
    try:
        return _try_to_read(path, "mode=ro", stack)
    except sqlite3.OperationalError as error:
        name = getattr(error, "sqlite_errorname", "")
        is_read_only = name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY"))
        if not (is_read_only or _is_about_locks(error)) or not path.exists():
            raise
    if is_read_only and not logs_of(path):
        return _try_to_read(path, "mode=ro&immutable=1", stack)
    # A log belongs to what was committed, and SQLite must write to take it into account: on a copy it can.
    return _try_to_read(_copy(path, stack), "mode=rw", stack)


def logs_of(path: Path) -> list[Path]:
    """Return the files beside `path` without which it is not complete."""
    logs = [path.with_name(f"{path.name}-{kind}") for kind in ("wal", "journal")]
    return [log for log in logs if log.exists() and log.stat().st_size]


def _copy(path: Path, stack: ExitStack) -> Path:
    """Copy the file with its logs, anew where it was written meanwhile; return the copy."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="precscope-")))
    for _ in range(_MOST_COPIES):
        before = _signature(path)
        for file in folder.iterdir():
            file.unlink()
        for file in (path, *logs_of(path)):
            shutil.copyfile(file, folder / file.name)
        if _signature(path) == before:
            break
    return folder / path.name


def _signature(path: Path) -> list[tuple[str, int, int]]:
    """Return what changes when the file or a log is written."""
    stats = [(file.name, file.stat()) for file in (path, *logs_of(path))]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _try_to_read(path: Path, query: str, stack: ExitStack) -> sqlite3.Connection:
    connection = _connect(path, query)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    stack.enter_context(closing(connection))
    return connection


def _connect(path: Path, query: str) -> sqlite3.Connection:
    name = f"{path.absolute().as_uri()}?{query}"
    return sqlite3.connect(name, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)


def _is_about_locks(error: sqlite3.OperationalError) -> bool:
    return getattr(error, "sqlite_errorname", "").startswith(_NO_LOCKS)


def _is_on_network(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Tell whether `path` lies on a network mount; False where the system does not say."""
    try:
        lines = mounts.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    folder, longest, kind = path.absolute().resolve().parent, -1, ""
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        point = Path(fields[4].encode().decode("unicode_escape"))  # a space is written as \\040
        if folder.is_relative_to(point) and len(point.parts) >= longest:
            longest, kind = len(point.parts), after.split()[0]
    return kind.startswith(_NETWORK)
