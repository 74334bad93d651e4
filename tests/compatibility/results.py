"""The results of the matrix, JSON lines of which the last of a row counts; claims let several processes share it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What identifies a row of the results.
KEY = ("device", "group", "name", "policy")


@dataclass(frozen=True)
class Claim:
    """The right to run a row; `died_unix_s` is when a process began it that never came to an end, or None."""

    died_unix_s: float | None


def key(record: dict[str, Any]) -> tuple[str, ...]:
    """Return what identifies a row; `device` is "cpu" or "gpu"."""
    return tuple(record[name] for name in KEY)


def read(path: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """Return the last record of each row. A line that an interruption cut short is passed over."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[key(record)] = record
    return found


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a record in one write, behind a line break where an interruption left half a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, 2)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(record).encode() + b"\n")


def merge(source: Path, target: Path) -> int:
    """Add the last record of each row of `source` to `target`, and return how many that were.

    Not added: what `target` has of a later time, and a row that was skipped where `target` tells how it came out.
    """
    known, added = read(target), 0
    for row, record in read(source).items():
        old = known.get(row)
        if old is not None:
            is_older = record["ended_unix_s"] <= old["ended_unix_s"]
            if is_older or (record["passed"] is None and old["passed"] is not None):
                continue
        append(target, record)
        added += 1
    return added


@contextlib.contextmanager
def claimed(path: Path, row: tuple[str, ...]) -> Iterator[Claim | None]:
    """Give the claim on a row, or None where another process holds it. It ends with its process, also by a kill."""
    # Locks hold on one machine only, and there, where locks are sure to work.
    of_file = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"precscope-matrix-{of_file}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / hashlib.sha256("\n".join(row).encode()).hexdigest()[:24]).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        file.seek(0)
        left = file.read()
        claim = Claim(float(left) if left else None)
        _write(file, str(time.time()))
        yield claim
        _write(file, "")  # not reached where the process dies


def _write(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
