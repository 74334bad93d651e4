"""The files of a run's workers: read together, and what became of each worker, also of those that left no file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precscope.errors import RunDirectoryError
from precscope.records import NoticeRecord
from precscope.replica_records import WorkerRecord
from precscope.rundir import worker_files, worker_number
from precscope.worker import Worker, read_worker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from precscope.records import RunRecord

__all__ = ["lost_worker_notices", "read_workers", "worker_record"]


def read_workers(directory: Path, record: RunRecord) -> tuple[list[Worker], list[WorkerRecord]]:
    """Return the workers whose files can be read, by number, and what is known of the others.

    Raises:
        RunDirectoryError: The directory cannot be read, or no file in it can.
    """
    workers: list[Worker] = []
    lost: list[WorkerRecord] = []
    failure: RunDirectoryError | None = None
    files = worker_files(directory)
    for file in files:
        try:
            workers.append(read_worker(file))
        except RunDirectoryError as error:
            failure = failure or error
            lost.append(WorkerRecord(worker_number(file), "damaged", str(error), 0))
    if failure is not None and not workers:
        raise failure
    found = set(map(worker_number, files))
    expected = range(int(record.model.get("workers") or 1))
    lost += [WorkerRecord(number, "missing", None, 0) for number in expected if number not in found]
    return workers, lost


def worker_record(worker: Worker, record: RunRecord, alive: bool | None) -> WorkerRecord:
    """Return what became of a worker, as of now; `alive` tells whether the process that wrote `run.yaml` lives."""
    status, error = record.status, record.error
    if worker.number and worker.state is not None:
        return WorkerRecord(worker.number, worker.state.status_now(), worker.state.error, len(worker.samples))
    killed = status == "running" and alive is False
    return WorkerRecord(worker.number, "killed" if killed else status, error, len(worker.samples))


def lost_worker_notices(workers: Sequence[WorkerRecord]) -> list[NoticeRecord]:
    """Return a sentence for each worker of several of which something is missing."""
    ends = {
        "missing": "left no file in the run directory: what it recorded is not in this report.",
        "damaged": "is left out of this report, for its file cannot be read: {error}",
        "killed": "was killed: what it recorded ends there.",
        "failed": "failed: {error}",
    }
    return [
        NoticeRecord(
            None,
            "warning",
            "workers",
            f"worker {worker.number} of {len(workers)} {ends[worker.status].format(error=worker.error)}",
        )
        for worker in workers
        if len(workers) > 1 and worker.status in ends
    ]
