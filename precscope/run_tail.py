"""Following a run: before it begins, while it grows, after it ended, and when another takes its place."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

from precscope.errors import RunDirectoryError
from precscope.reader import Run, merge_workers
from precscope.run_file import RUN_FILE, ProcessRecord, read_run_file
from precscope.rundir import local_path, worker_files
from precscope.worker_tail import WorkerTail

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from precscope.records import RunRecord, RunStatus

__all__ = ["RunTail"]

#: Seconds between two looks at whether the process lives.
_PROCESS_S = 1.0


class RunTail:
    """Reads a run as it grows; what it keeps is bounded, see `WorkerTail`.

    Args:
        path: The run directory, which need not be there yet.
        clock: A monotonic clock in seconds.

    Attributes:
        path: The run directory.
        record: What `run.yaml` says; None while there is no run.
        process_alive: Whether the process that records lives; None where that cannot be seen (another host).
        workers: The files that were found, by the worker's number.
        runs: How many runs were seen at this path: when it grows, another run began.

    Raises:
        RunDirectoryError: `path` is no path, or a URL.
    """

    def __init__(self, path: str | os.PathLike[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.path = local_path(path)
        self.record: RunRecord | None = None
        self.process_alive: bool | None = None
        self.workers: list[WorkerTail] = []
        self.runs = 0
        self._clock = clock
        self._process: ProcessRecord | None = None
        self._file_seen: tuple[int, int, int] | None = None
        self._process_seen_s: float | None = None

    @property
    def status(self) -> RunStatus | Literal["killed", "waiting"]:
        """As `Run.status`; "waiting" while there is no run."""
        if self.record is None:
            return "waiting"
        if self.record.status == "running" and self.process_alive is False:
            return "killed"
        return self.record.status

    @property
    def is_behind(self) -> bool:
        """Whether there is more to read than the last look read."""
        return any(worker.is_behind for worker in self.workers)

    def look(self) -> bool:
        """Read what is new; return whether there was anything.

        Raises:
            RunDirectoryError: `path` is a file, or the run is damaged, unreadable or of a newer PrecScope.
        """
        if self.path.is_file():
            raise RunDirectoryError(f"'{self.path}' is a file, not a run directory. Give the directory that holds it.")
        try:
            changed = self._look_at_run_file()
            changed |= self._look_at_process()
            return self._look_at_workers() or changed
        except RunDirectoryError:
            if (self.path / RUN_FILE).exists():
                raise
            return self._forget()  # it was deleted, as happens when another run is to replace it

    def recent_run(self, samples: int) -> Run:
        """Return the run as if the last samples, at most `samples` of each worker, were all that were taken.

        Raises:
            RunDirectoryError: There is no run, or it cannot be read.
        """
        if self.record is None:
            raise RunDirectoryError(f"There is no run at '{self.path}' yet.")
        workers = [worker.recent_worker(samples) for worker in self.workers]
        return merge_workers(self.path, self.record, self.process_alive, workers)

    def _look_at_run_file(self) -> bool:
        try:
            stat = (self.path / RUN_FILE).stat()
        except OSError:
            return self._forget()
        seen = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if seen == self._file_seen:
            return False
        record, process = read_run_file(self.path)
        if self.record is None or process != self._process or record.started_unix_s != self.record.started_unix_s:
            self._forget()
            self.runs += 1
        self.record, self._process, self._file_seen = record, process, seen
        return True

    def _look_at_process(self) -> bool:
        now = self._clock()
        is_due = self._process_seen_s is None or now - self._process_seen_s >= _PROCESS_S
        if self.record is None or self._process is None or not is_due:
            return False
        before, self._process_seen_s = self.process_alive, now
        self.process_alive = self._process.is_alive() if self.record.status == "running" else None
        if before == self.process_alive:
            return False
        self._look_at_run_file()  # it may have ended in good order between the two looks
        return True

    def _look_at_workers(self) -> bool:
        if self.record is None:
            return False
        known = {worker.path: worker for worker in self.workers}
        self.workers = [known.get(path) or WorkerTail(path) for path in worker_files(self.path)]
        changed = [worker.look() for worker in self.workers]
        return any(changed)

    def _forget(self) -> bool:
        """Wait for a run, as at first; return whether there was one until now."""
        had_one = self.record is not None
        self.record = self._process = self.process_alive = None
        self.workers, self._file_seen, self._process_seen_s = [], None, None
        return had_one
