"""Writing a run: each call is one transaction, so whatever was written before a failure or a kill stays readable."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from precscope.database import (
    close_database,
    create_database,
    insert,
    insert_row,
    transaction,
    used_bytes,
)
from precscope.errors import RunDirectoryError
from precscope.fork_safety import guard
from precscope.records import SCALAR_DTYPE
from precscope.run_failures import sqlite_failure
from precscope.run_file import ProcessRecord, write_run_file
from precscope.rundir import create_run_directory, delete_run_files, delete_worker_files, worker_file
from precscope.sample_arrays import encode_histograms
from precscope.sample_rows import replica_row, sample_row
from precscope.statistics import HISTOGRAM_BINS
from precscope.steady_clock import SteadyClock
from precscope.thinning import thin_rows, thin_samples
from precscope.worker_state import WorkerState, write_state

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from precscope.device_records import DeviceInfo, DeviceSample
    from precscope.lint_result import LintFinding
    from precscope.op_records import OpRecord, ProfiledWindow
    from precscope.origin_records import OriginRecord
    from precscope.records import (
        CostRecord,
        LayerRecord,
        LossScaleRecord,
        NoticeRecord,
        ProgressRecord,
        RunRecord,
        RunStatus,
        SampleRecord,
        StepTimeRecord,
        TensorRecord,
    )
    from precscope.reference_records import ReferenceRecord, ReferenceStepRecord
    from precscope.replica_records import ReplicaRecord, ReplicaSample

__all__ = ["RunWriter"]

_THIN = """
DELETE FROM device_samples WHERE time_unix_s IN (
    SELECT time_unix_s FROM (
        SELECT time_unix_s, row_number() OVER (ORDER BY time_unix_s) AS look
        FROM (SELECT DISTINCT time_unix_s FROM device_samples)
    ) WHERE look % 2 = 0
)
"""

#: Every so many samples the histograms' running totals are stored with the sample, so that a reader adds up this many
#: samples at most; storing them with each sample would double the time to write one.
_TOTALS_EVERY = 16
#: Samples are thinned until the file takes no more than this share of its limit.
_ENOUGH = 0.9
#: Rows of a table of small records, after which they are thinned: some megabytes.
_MOST_ROWS = 50_000


class RunWriter:
    """Writes one worker's part of a run: tensors and samples from one thread, everything else from any.

    Worker 0 writes `run.yaml`, too.

    Attributes:
        path: The run directory.
        record: What `run.yaml` says.
        worker: The worker's number.
        samples_thinned: How many samples were deleted to keep the file within its limit.
        lock: Held while something is written.

    Every method but `close` raises RunDirectoryError where the write failed (the disk is full, the directory was
    removed, ...). Nothing of that call is then stored, all earlier calls are.
    """

    def __init__(self, directory: Path, record: RunRecord, worker: int = 0, most_bytes: int | None = None) -> None:
        """Begin to write into `directory`; use `create`."""
        self.path = directory
        self.record = record
        self.worker = worker
        self.samples_thinned = 0
        self._most_bytes = most_bytes
        self._clock = SteadyClock(record.started_unix_s)
        self._rows: dict[str, int] = {}
        self._is_mine = True
        self._process = ProcessRecord.current()
        self.lock = threading.Lock()
        self._tensors = 0
        self._samples = 0
        self._totals = np.zeros((0, HISTOGRAM_BINS), np.uint64)
        # run.yaml first: from now on the directory is known as a run, whatever happens.
        if worker == 0:
            write_run_file(directory, record, self._process)
        self._file = worker_file(directory, worker)
        self._connection: sqlite3.Connection | None = create_database(self._file)
        self._stat = self._file.stat()
        self._state = WorkerState(self._process, record.started_unix_s)
        guard(self)
        with self._writing() as connection:
            write_state(connection, self._state)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        record: RunRecord,
        overwrite: bool = False,
        worker: int = 0,
        most_bytes: int | None = None,
    ) -> RunWriter:
        """Create the run directory `path`, or join the one of worker 0, and return the worker's writer.

        Args:
            path: See `precscope.rundir.create_run_directory`.
            record: What `run.yaml` is to say; its start is the time from which the writer counts on.
            overwrite: See there.
            worker: The worker's number.
            most_bytes: Size of the worker's file above which old samples are thinned out; None for no limit.

        Raises:
            RunDirectoryError: See `precscope.rundir.create_run_directory`.
        """
        directory = create_run_directory(path, overwrite, worker)
        try:
            return cls(directory, record, worker, most_bytes)
        except RunDirectoryError:
            with suppress(OSError):  # so that the same call can succeed once there is space
                if worker:
                    delete_worker_files(directory, worker)
                else:
                    delete_run_files(directory)
            raise

    def add_layers(self, layers: Iterable[LayerRecord]) -> None:
        """Add layers; a layer whose id is known replaces the older record."""
        self._insert(layers)

    def add_tensors(self, tensors: Sequence[TensorRecord]) -> None:
        """Add tensors behind those that are there.

        Raises:
            ValueError: Their indices do not go on from the tensors so far.
        """
        expected = list(range(self._tensors, self._tensors + len(tensors)))
        if [tensor.index for tensor in tensors] != expected:
            raise ValueError(f"Tensors must be numbered on from {self._tensors}, in order.")
        self._insert(tensors)
        self._tensors += len(tensors)

    def add_sample(
        self,
        sample: SampleRecord,
        scalars: NDArray[np.void],
        histograms: NDArray[np.uint64],
        tensor_indices: ArrayLike | None = None,
        costs: Iterable[CostRecord] = (),
        replicas: Sequence[ReplicaSample] = (),
    ) -> None:
        """Add a sample; its `index` is not used, the reader numbers samples in the order of writing.

        Args:
            sample: The step.
            scalars: SCALAR_DTYPE [tensors].
            histograms: uint64 [tensors, HISTOGRAM_BINS].
            tensor_indices: Which tensors these are, ascending; None for all tensors so far.
            costs: What PrecScope cost so far, as for `set_costs`, for those who read meanwhile.
            replicas: What each of the worker's replicas computed, where there are several; the arrays above hold all.

        Raises:
            ValueError: The arrays have another shape or dtype, or the tensors are unknown.
        """
        indices = self._checked_indices(tensor_indices)
        rows = self._tensors if indices is None else len(indices)
        _check_array("scalars", scalars, SCALAR_DTYPE, (rows,))
        _check_array("histograms", histograms, np.dtype(np.uint64), (rows, HISTOGRAM_BINS))
        totals = self._added_to_totals(histograms, indices)
        is_checkpoint = self._samples % _TOTALS_EVERY == _TOTALS_EVERY - 1
        row = sample_row(self._samples, sample, scalars, histograms, indices, totals if is_checkpoint else None)
        with self._writing() as connection:
            insert_row(connection, "samples", row)
            for replica in replicas:
                insert_row(connection, "replica_samples", replica_row(self._samples, replica))
            insert(connection, costs)
            thinned = self._thin_samples(connection, totals)
        self._totals = totals
        self._samples += 1
        self.samples_thinned += thinned

    def _thin_samples(self, connection: sqlite3.Connection, totals: NDArray[np.uint64]) -> int:
        """Delete old samples where the file has outgrown its limit; return how many."""
        if self._most_bytes is None or used_bytes(connection) <= self._most_bytes:
            return 0
        # Totals are summed over all samples that ever were: from now on the newest one has them.
        newest = (encode_histograms(totals), self._samples)
        connection.execute('UPDATE samples SET histogram_totals = ? WHERE "index" = ?', newest)
        thinned = 0
        for incidents in (False, True):
            while used_bytes(connection) > _ENOUGH * self._most_bytes and (gone := thin_samples(connection, incidents)):
                thinned += gone
        return thinned

    def _add_row(self, record: LossScaleRecord | StepTimeRecord, table: str) -> None:
        """Add a record of which a long run writes many, and thin them out where there are too many."""
        with self._writing() as connection:
            insert(connection, [record])
            rows = self._rows.get(table, 0) + 1
            self._rows[table] = rows if rows <= _MOST_ROWS else thin_rows(connection, table)

    def add_loss_scale(self, record: LossScaleRecord) -> None:
        """Add one look at the optimizer."""
        self._add_row(record, "loss_scales")

    def add_notice(self, record: NoticeRecord) -> None:
        """Add what the session has to say."""
        self._insert([record])

    def set_costs(self, costs: Iterable[CostRecord]) -> None:
        """Store what PrecScope cost so far; a kind that is known is replaced."""
        self._insert(costs)

    def update_record(self, **changes: Any) -> None:
        """Change fields of the run's record and write `run.yaml` anew, as worker 0."""
        record = dataclasses.replace(self.record, **changes)
        if self.worker == 0:
            with self.lock:
                self._check_in_place()
                write_run_file(self.path, record, self._process)
        self.record = record

    def add_step_time(self, record: StepTimeRecord) -> None:
        """Add one measured stretch of plain steps."""
        self._add_row(record, "step_times")

    def add_op_times(self, window: ProfiledWindow, records: Iterable[OpRecord]) -> None:
        """Add what the profiled window gave; a run has one at most."""
        self._insert([window, *records])

    def add_origin(self, record: OriginRecord) -> None:
        """Add where values turned non-finite; one whose index is known replaces the older record."""
        self._insert([record])

    def add_lint(self, findings: Iterable[LintFinding]) -> None:
        """Add what layers' own code risks in 16 bits."""
        self._insert(findings)

    def add_replicas(self, replicas: Iterable[ReplicaRecord]) -> None:
        """Add the replicas that this worker runs."""
        self._insert(replicas)

    def add_devices(self, devices: Iterable[DeviceInfo]) -> None:
        """Add devices; one whose id is known replaces the older record."""
        self._insert(devices)

    def add_device_samples(self, samples: Iterable[DeviceSample], progress: ProgressRecord | None = None) -> None:
        """Add what was seen of devices; `progress` replaces what was known of how far the training is."""
        with self._writing() as connection:
            insert(connection, samples)
            if progress is not None:
                connection.execute("DELETE FROM progress")
                insert(connection, [progress])

    def thin_device_samples(self) -> None:
        """Delete every second look at the devices: the second, the fourth, ... in the order of time."""
        with self._writing() as connection:
            connection.execute(_THIN)

    def add_reference(self, step: ReferenceStepRecord, records: Iterable[ReferenceRecord]) -> None:
        """Add a reference step and what it measured."""
        self._insert([step, *records])

    def set_results(self, results: Mapping[str, Sequence[float]]) -> None:
        """Store what each metric was at the end of each epoch; a metric that is known is replaced."""
        with self._writing() as connection:
            for name, series in results.items():
                for epoch, value in enumerate(series):
                    insert_row(connection, "results", {"name": name, "epoch": epoch, "value": float(value)})

    def close(self, status: RunStatus, error: str | None = None, ended_unix_s: float | None = None) -> None:
        """End the run, once; never raises RunDirectoryError, also after a failure: the run then stays "running".

        Args:
            status: How it ended.
            error: The exception's type and message, or None.
            ended_unix_s: Wall-clock end; None for now, by a clock that went on steadily since the start.
        """
        if self._connection is None:
            return
        ended = self._clock() if ended_unix_s is None else ended_unix_s
        self._state = dataclasses.replace(self._state, status=status, error=error, ended_unix_s=ended)
        with suppress(RunDirectoryError), self._writing() as connection:
            write_state(connection, self._state)
        with self.lock:
            close_database(self._connection, in_place=self._in_place())
            self._connection = None
        # The caller heard of a failure from the call that failed first; a reader sees that the process is gone.
        with suppress(RunDirectoryError):
            self.update_record(status=status, error=error, ended_unix_s=ended)

    def _insert(self, records: Iterable[Any]) -> None:
        with self._writing() as connection:
            insert(connection, records)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Give the connection inside a transaction; every failure becomes a RunDirectoryError."""
        with self.lock:
            if not self._is_mine:
                raise RunDirectoryError(
                    f"This process was forked from the one that records the run in '{self.path}', which alone writes "
                    "to it. Begin a session of its own here, with another run directory."
                )
            if self._connection is None:
                raise RunDirectoryError(f"The run in '{self.path}' is closed; nothing can be written to it any more.")
            self._check_in_place()
            try:
                with transaction(self._connection):
                    yield self._connection
            except (sqlite3.ProgrammingError, sqlite3.IntegrityError):
                raise  # a record that is none: the caller's mistake, not the directory's
            except sqlite3.Error as error:
                raise sqlite_failure(error, self._file) from error

    def now_unix_s(self) -> float:
        """Return the time in seconds since 1970, by a clock that went on steadily since the run's start."""
        return self._clock()

    @property
    def is_mine(self) -> bool:
        """Whether this process began the run; not so in a process that was forked from it."""
        return self._is_mine

    def disown(self) -> sqlite3.Connection | None:
        """Give up the connection in a forked process, and return it: it must not be used there."""
        connection, self._connection, self._is_mine = self._connection, None, False
        return connection

    def _check_in_place(self) -> None:
        # SQLite would go on writing into a file that was deleted, and nobody would ever see it.
        if not self._in_place():
            raise RunDirectoryError(
                f"'{self._file}' was removed or replaced while the run was written. Nothing more is recorded."
            )

    def _in_place(self) -> bool:
        try:
            return os.path.samestat(self._file.stat(), self._stat)
        except OSError:
            return False

    def _checked_indices(self, tensor_indices: ArrayLike | None) -> NDArray[np.int64] | None:
        if tensor_indices is None:
            return None
        indices = np.asarray(tensor_indices, np.int64)
        known = indices.size == 0 or (indices[0] >= 0 and indices[-1] < self._tensors)
        if indices.ndim != 1 or not known or (np.diff(indices) <= 0).any():
            raise ValueError(f"Tensor indices must ascend and lie in [0, {self._tensors}); received {indices}.")
        return indices

    def _added_to_totals(self, histograms: NDArray[np.uint64], indices: NDArray[np.int64] | None) -> NDArray[np.uint64]:
        totals = np.zeros((self._tensors, HISTOGRAM_BINS), np.uint64)
        totals[: len(self._totals)] = self._totals
        totals[slice(None) if indices is None else indices] += histograms
        return totals


def _check_array(name: str, array: NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{name} must be {dtype} {list(shape)}; received {array.dtype} {list(array.shape)}.")
