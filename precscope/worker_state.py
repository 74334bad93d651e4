"""What a worker's file says about its worker: who writes it, since when, and how that ended.

`run.yaml` tells it of worker 0, for the run as a whole; the others cannot write there.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from precscope.database import read_meta, write_meta
from precscope.run_file import ProcessRecord

if TYPE_CHECKING:
    import sqlite3

    from precscope.records import RunStatus

__all__ = ["WorkerState", "read_state", "write_state"]


@dataclass(frozen=True)
class WorkerState:
    """One worker's own account.

    Attributes:
        process: The process that writes the file.
        started_unix_s: Wall-clock start.
        status: "running" until the end was written.
        error: The exception's type and message, or None.
        ended_unix_s: Wall-clock end, None while running.
    """

    process: ProcessRecord
    started_unix_s: float
    status: RunStatus = "running"
    error: str | None = None
    ended_unix_s: float | None = None

    def status_now(self) -> RunStatus | Literal["killed"]:
        """Return the status, but "killed" where it says "running" and the process is gone."""
        return "killed" if self.status == "running" and self.process.is_alive() is False else self.status


def write_state(connection: sqlite3.Connection, state: WorkerState) -> None:
    """Store the state, in place of the one that is there."""
    write_meta(
        connection,
        {
            "process": json.dumps(asdict(state.process)),
            "started_unix_s": repr(state.started_unix_s),
            "status": state.status,
            "error": state.error,
            "ended_unix_s": None if state.ended_unix_s is None else repr(state.ended_unix_s),
        },
    )


def read_state(connection: sqlite3.Connection) -> WorkerState | None:
    """Return what the file says; None where an earlier version wrote it."""
    meta = read_meta(connection)
    with suppress(KeyError, TypeError, ValueError):
        ended = meta.get("ended_unix_s")
        return WorkerState(
            ProcessRecord(**json.loads(meta["process"])),
            float(meta["started_unix_s"]),
            meta["status"],  # type: ignore[arg-type]
            meta.get("error"),
            None if ended is None else float(ended),
        )
    return None
