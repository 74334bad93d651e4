"""Reading one worker's database: its records at once, its arrays when they are asked for.

Samples and tensors are numbered as they are appended, so the numbers taken when the file was first read hold the
snapshot: what is loaded later is cut off there. Old samples may be thinned out meanwhile; then the run is opened again.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from precscope.database import columns_of, open_database, select, select_results
from precscope.device_records import DeviceInfo, DeviceSample
from precscope.errors import RunDirectoryError
from precscope.lint_result import LintFinding
from precscope.op_records import OpRecord, ProfiledWindow
from precscope.origin_records import OriginRecord
from precscope.records import (
    SCALAR_DTYPE,
    CostRecord,
    LayerRecord,
    LossScaleRecord,
    NoticeRecord,
    SampleRecord,
    StepTimeRecord,
    TensorRecord,
)
from precscope.reference_records import ReferenceRecord, ReferenceStepRecord
from precscope.replica_records import ReplicaRecord, ReplicaSample
from precscope.run_failures import damaged
from precscope.rundir import worker_number
from precscope.sample_arrays import decode_histograms, decode_indices, decode_replica_scalars, decode_scalars
from precscope.statistics import HISTOGRAM_BINS
from precscope.worker_state import WorkerState, read_state

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    Decode = Callable[[bytes], NDArray[Any]]
    Columns = slice | NDArray[np.int32]

__all__ = ["Worker", "read_worker", "samples_after", "scalars_after"]

_LAST_TOTALS = """
SELECT "index", histogram_totals FROM samples WHERE "index" <= ? AND histogram_totals IS NOT NULL
ORDER BY "index" DESC LIMIT 1
"""

_REPLICAS = "SELECT replica, loss, loss_is_nan, scalars FROM replica_samples WHERE sample = ? ORDER BY replica"
#: Samples that are read at a time where they are only added up: their scalars then stay in the processor's cache.
_CHUNK = 16


@dataclass(frozen=True)
class Worker:
    """What one worker wrote, with its own numbers of samples and tensors.

    Attributes:
        path: The database.
        layers: In the order of writing.
        tensors: By index.
        samples: By index.
        loss_scales: In the order of writing.
        notices: In the order of writing.
        costs: In the order of writing.
        step_times: In the order of time.
        profiled_windows: One, or none where no op time was recorded.
        op_times: The costliest first.
        devices: In the order of writing.
        device_samples: In the order of time.
        results: Metrics at the end of each epoch, by name.
        reference_steps: In the order of writing.
        reference: What they measured, in the order of writing.
        origins: Where values turned non-finite, in the order of finding.
        first_sample: Number of the first of `samples` in the file: above 0 where only the last ones are looked at.
        replicas: Those that the worker runs; none where there is one replica in all.
        lint: What layers' own code risks in 16 bits, in the order of finding.
        state: Who writes the file, and how that ended; None where an earlier version wrote it.
    """

    path: Path
    layers: tuple[LayerRecord, ...]
    tensors: tuple[TensorRecord, ...]
    samples: tuple[SampleRecord, ...]
    loss_scales: tuple[LossScaleRecord, ...]
    notices: tuple[NoticeRecord, ...]
    costs: tuple[CostRecord, ...]
    step_times: tuple[StepTimeRecord, ...]
    profiled_windows: tuple[ProfiledWindow, ...]
    op_times: tuple[OpRecord, ...]
    devices: tuple[DeviceInfo, ...]
    device_samples: tuple[DeviceSample, ...]
    results: dict[str, list[float]]
    reference_steps: tuple[ReferenceStepRecord, ...] = ()
    reference: tuple[ReferenceRecord, ...] = ()
    origins: tuple[OriginRecord, ...] = ()
    first_sample: int = 0
    replicas: tuple[ReplicaRecord, ...] = ()
    lint: tuple[LintFinding, ...] = ()
    state: WorkerState | None = None

    @property
    def number(self) -> int:
        """The worker's number, as in the file's name."""
        return worker_number(self.path)

    def scalars(self) -> NDArray[np.void]:
        """Return SCALAR_DTYPE [samples, tensors]; all zero where a tensor was not recorded in a sample."""
        return self._scalars(range(len(self.samples)))

    def scalar_chunks(self) -> Iterator[tuple[int, NDArray[np.void]]]:
        """Give the scalars of some samples at a time, SCALAR_DTYPE [samples, tensors], and the number of the first."""
        for first in range(0, len(self.samples), _CHUNK):
            samples = range(first, min(first + _CHUNK, len(self.samples)))
            yield first, self._scalars(samples)

    def replica_samples(self, sample: int) -> tuple[ReplicaSample, ...]:
        """Return what each of the worker's replicas computed in a sample, by number; of one, the sample itself."""
        if len(self.replicas) < 2:
            number = self.replicas[0].number if self.replicas else 0
            return (ReplicaSample(number, self.samples[sample].loss, self._scalars(range(sample, sample + 1))[0]),)
        found = []
        (columns,) = [columns for _, columns, _ in self._arrays("scalars", decode_scalars, range(sample, sample + 1))]
        with open_database(self.path) as connection:
            for number, loss, is_nan, blob in connection.execute(_REPLICAS, (self.samples[sample].index,)):
                scalars = np.zeros(len(self.tensors), SCALAR_DTYPE)
                scalars[columns] = _decode(self.path, decode_replica_scalars, blob)
                found.append(ReplicaSample(number, math.nan if is_nan else loss, scalars))
        return tuple(found)

    def histograms(self, sample: int) -> NDArray[np.uint64]:
        """Return uint64 [tensors, HISTOGRAM_BINS] of one sample; zero where a tensor was not recorded."""
        histograms = np.zeros((len(self.tensors), HISTOGRAM_BINS), np.uint64)
        self._add_histograms(histograms, range(sample, sample + 1))
        return histograms

    def total_histograms(self) -> NDArray[np.uint64]:
        """Return uint64 [tensors, HISTOGRAM_BINS]: the sum over all samples."""
        totals = np.zeros((len(self.tensors), HISTOGRAM_BINS), np.uint64)
        counted = 0
        with open_database(self.path) as connection:
            last = self.samples[-1].index if self.samples else -1
            stored = connection.execute(_LAST_TOTALS, (last,)).fetchone()
        if stored is not None and not self.first_sample:
            counted = bisect_right([sample.index for sample in self.samples], stored[0])
            array = _decode(self.path, decode_histograms, stored[1])
            totals[: len(array)] = array
        self._add_histograms(totals, range(counted, len(self.samples)))
        return totals

    def _scalars(self, samples: range) -> NDArray[np.void]:
        # As plain bytes: NumPy copies records field by field, which takes ten times as long.
        raw = np.dtype(f"V{SCALAR_DTYPE.itemsize}")
        scalars = np.zeros((len(samples), len(self.tensors)), raw)
        for sample, columns, array in self._arrays("scalars", decode_scalars, samples):
            scalars[sample - samples.start, columns] = array.view(raw)
        return scalars.view(SCALAR_DTYPE)

    def _add_histograms(self, totals: NDArray[np.uint64], samples: range) -> None:
        for _, columns, array in self._arrays("histograms", decode_histograms, samples):
            totals[columns] += array

    def _arrays(self, column: str, decode: Decode, samples: range) -> Iterator[tuple[int, Columns, NDArray[Any]]]:
        """Give the number of each sample, the tensors that it holds and their array."""
        query = f'SELECT "index", tensor_indices, {column} FROM samples WHERE "index" BETWEEN ? AND ? ORDER BY "index"'
        numbers = {self.samples[sample].index: sample for sample in samples}
        if not numbers:
            return
        with open_database(self.path) as connection:
            for index, indices, blob in connection.execute(query, (min(numbers), max(numbers))):
                if (sample := numbers.pop(index, None)) is not None:
                    yield sample, *_decoded(self.path, decode, indices, blob, len(self.tensors))
        if numbers:
            raise RunDirectoryError(f"'{self.path}' was thinned out or replaced while it was read. Open the run again.")


def read_worker(path: Path) -> Worker:
    """Return what is committed in the worker's file `path` now.

    Raises:
        RunDirectoryError: The file is damaged, of a newer format or unreadable.
    """
    with open_database(path) as connection:
        return Worker(
            path,
            select(connection, LayerRecord),
            select(connection, TensorRecord),
            samples_after(connection, -1),
            select(connection, LossScaleRecord),
            select(connection, NoticeRecord),
            select(connection, CostRecord),
            select(connection, StepTimeRecord),
            select(connection, ProfiledWindow),
            select(connection, OpRecord),
            select(connection, DeviceInfo),
            select(connection, DeviceSample),
            select_results(connection),
            select(connection, ReferenceStepRecord),
            select(connection, ReferenceRecord),
            select(connection, OriginRecord),
            replicas=select(connection, ReplicaRecord),
            lint=select(connection, LintFinding),
            state=read_state(connection),
        )


def samples_after(connection: sqlite3.Connection, index: int, most: int = -1) -> tuple[SampleRecord, ...]:
    """Return the samples whose number is above `index`, at most `most` of them (negative for all), the oldest first."""
    known = columns_of(connection, "samples")
    names = [item.name for item in fields(SampleRecord) if item.name in known or item.default is MISSING]
    columns = ", ".join(f'"{name}"' for name in [*names, "loss_is_nan"])
    query = f'SELECT {columns} FROM samples WHERE "index" > ? ORDER BY "index" LIMIT ?'
    rows = connection.execute(query, (index, most))
    return tuple(_sample(dict(zip(names, row, strict=False)), bool(row[-1])) for row in rows)


def scalars_after(
    connection: sqlite3.Connection, path: Path, index: int, tensors: int
) -> Iterator[tuple[int, Columns, NDArray[np.void]]]:
    """Give, for each sample whose number is above `index`, its number, which of `tensors` it holds, and their scalars.

    Raises:
        RunDirectoryError: The file `path` is damaged.
    """
    query = 'SELECT "index", tensor_indices, scalars FROM samples WHERE "index" > ? ORDER BY "index"'
    for number, indices, blob in connection.execute(query, (index,)):
        yield number, *_decoded(path, decode_scalars, indices, blob, tensors)


def _decoded(
    path: Path, decode: Decode, indices: bytes | None, blob: bytes, tensors: int
) -> tuple[Columns, NDArray[Any]]:
    """Return which of `tensors` a sample holds, and their array."""
    array = _decode(path, decode, blob)
    if len(array) > tensors:
        raise damaged(path, f"has a sample with {len(array)} of {tensors} tensors")
    return slice(len(array)) if indices is None else _decode(path, decode_indices, indices), array


def _decode(path: Path, decode: Decode, blob: bytes) -> NDArray[Any]:
    try:
        return decode(blob)
    except (ValueError, TypeError) as error:  # TypeError: NULL, from a page of zeros
        raise damaged(path, f"cannot be read ({error})") from error


def _sample(values: dict[str, Any], loss_is_nan: bool) -> SampleRecord:
    if loss_is_nan:
        values["loss"] = math.nan
    if values["applied"] is not None:
        values["applied"] = bool(values["applied"])
    return SampleRecord(**values)
