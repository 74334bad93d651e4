"""Following one worker's file: a look reads what was committed since the last one, and keeps a bounded part of it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from precscope.database import FIRST_ROW, last_row, open_database, select_after
from precscope.device_records import DeviceInfo, DeviceSample
from precscope.records import (
    CostRecord,
    LayerRecord,
    LossScaleRecord,
    NoticeRecord,
    SampleRecord,
    StepTimeRecord,
    TensorRecord,
)
from precscope.replica_records import ReplicaRecord
from precscope.thinned import Thinned
from precscope.worker import Worker, samples_after, scalars_after

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path
    from typing import Any, TypeVar

    import numpy as np
    from numpy.typing import NDArray

    from precscope.worker import Columns

    Record = TypeVar("Record")

__all__ = ["RECENT", "FreshSample", "WorkerTail"]

#: The longest series that is kept; a terminal has fewer columns.
_SERIES = 512
#: The samples and notices that are kept whole, and of how many new samples a look reads the scalars at most.
RECENT = 32
#: Rows of a table that one look reads at most: a transaction that stays short never delays the writer's checkpoint.
_ROWS_A_LOOK = 5000

Signature = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, eq=False)
class FreshSample:
    """The scalars of a sample that the last look found.

    Attributes:
        sample: The step.
        columns: Which of the worker's tensors it holds.
        scalars: SCALAR_DTYPE of these tensors.
    """

    sample: SampleRecord
    columns: Columns
    scalars: NDArray[np.void]


class WorkerTail:
    """One worker's file, followed while it is written.

    What it keeps does not grow with the run's length: of long series an even selection, of samples the last ones.

    Args:
        path: The database.

    Attributes:
        path: The database.
        layers: By id.
        tensors: By index.
        replicas: Those that the worker runs; none where there is one replica in all.
        samples: The sampled steps, thinned.
        recent: The last samples.
        fresh: What the last look found, the last `RECENT` samples of it.
        loss_scales: Looks at the optimizer, thinned.
        notices: The last ones.
        costs: By kind, as they were written last.
        step_times: Measured stretches of plain steps, thinned.
        devices: By id.
        device_samples: The devices' states by id, thinned.
        is_behind: Whether there was more than one look reads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.layers: dict[str, LayerRecord] = {}
        self.tensors: list[TensorRecord] = []
        self.replicas: list[ReplicaRecord] = []
        self.samples: Thinned[SampleRecord] = Thinned(_SERIES)
        self.recent: deque[SampleRecord] = deque(maxlen=RECENT)
        self.fresh: list[FreshSample] = []
        self.loss_scales: Thinned[LossScaleRecord] = Thinned(_SERIES)
        self.notices: deque[NoticeRecord] = deque(maxlen=RECENT)
        self.costs: tuple[CostRecord, ...] = ()
        self.step_times: Thinned[StepTimeRecord] = Thinned(_SERIES)
        self.devices: dict[str, DeviceInfo] = {}
        self.device_samples: dict[str, Thinned[DeviceSample]] = {}
        self.is_behind = False
        self._rows: dict[type[Any], int] = {}
        self._sample = self._scalars = -1  # the last sample that was read, and whose scalars were
        self._signatures: list[Signature] = [(), ()]

    def look(self) -> bool:
        """Read what was committed since the last look, in one short transaction; return whether there was anything.

        Raises:
            RunDirectoryError: The file is damaged, of a newer format or unreadable.
        """
        self.fresh = []
        signature = self._signature()
        # Two looks at an unchanged file before it is left alone: file times are coarse, and a commit right after a look
        # may carry the same.
        if not self.is_behind and self._signatures == [signature, signature]:
            return False
        with open_database(self.path) as connection:
            found = self._read(connection)
        self._signatures = [self._signatures[1], signature]
        return found

    def recent_worker(self, samples: int) -> Worker:
        """Return the worker as if its last samples, `samples` at most, were all."""
        last = tuple(self.recent)[-samples:]
        return Worker(
            self.path,
            tuple(self.layers.values()),
            tuple(self.tensors),
            last,
            self.loss_scales.items(),
            tuple(self.notices),
            self.costs,
            self.step_times.items(),
            (),
            (),
            tuple(self.devices.values()),
            tuple(item for series in self.device_samples.values() for item in series.items()),
            {},
            (),
            first_sample=last[0].index if last else 0,
            replicas=tuple(self.replicas),
        )

    def _read(self, connection: sqlite3.Connection) -> bool:
        self.is_behind = False
        layers = self._after(connection, LayerRecord)
        tensors = self._after(connection, TensorRecord)
        self.layers |= {layer.id: layer for layer in layers}
        self.tensors += tensors
        self.replicas += self._after(connection, ReplicaRecord)
        changed = [bool(layers), bool(tensors), self._read_samples(connection)]
        for record, series in ((LossScaleRecord, self.loss_scales), (StepTimeRecord, self.step_times)):
            records = self._after(connection, record)
            series.extend(records)  # type: ignore[attr-defined]  # a pair of one record each
            changed.append(bool(records))
        notices = self._after(connection, NoticeRecord)
        self.notices.extend(notices)
        costs, _ = select_after(connection, CostRecord, FIRST_ROW)
        changed += [bool(notices), costs != self.costs, self._read_devices(connection)]
        self.costs = costs
        return any(changed)

    def _read_samples(self, connection: sqlite3.Connection) -> bool:
        samples = samples_after(connection, self._sample, _ROWS_A_LOOK)
        if not samples:
            return False
        self.is_behind |= len(samples) == _ROWS_A_LOOK
        self._sample = samples[-1].index
        self.samples.extend(samples)
        self.recent.extend(samples)
        if not self.is_behind:
            by_number = {sample.index: sample for sample in self.recent}
            after = max(self._scalars, min(by_number) - 1)
            rows = scalars_after(connection, self.path, after, len(self.tensors))
            self.fresh = [FreshSample(by_number[number], columns, scalars) for number, columns, scalars in rows]
            self._scalars = self._sample
        return True

    def _read_devices(self, connection: sqlite3.Connection) -> bool:
        for device in (devices := self._after(connection, DeviceInfo)):
            self.devices[device.id] = device
        # The writer thins its looks at the devices, and then gives row numbers once more.
        self._rows[DeviceSample] = min(self._rows.get(DeviceSample, FIRST_ROW), last_row(connection, DeviceSample))
        samples = self._after(connection, DeviceSample)
        for sample in samples:
            self.device_samples.setdefault(sample.device, Thinned(_SERIES)).extend([sample])
        return bool(devices or samples)

    def _after(self, connection: sqlite3.Connection, cls: type[Record]) -> tuple[Record, ...]:
        """Return the next records of a class that were not read yet."""
        most = -1 if cls in (LayerRecord, TensorRecord) else _ROWS_A_LOOK
        records, self._rows[cls] = select_after(connection, cls, self._rows.get(cls, FIRST_ROW), most)
        self.is_behind |= len(records) == most
        return records

    def _signature(self) -> Signature:
        """Return what changes when something is committed: sizes and times of the file and its log."""
        return tuple(_stat(path) for path in (self.path, self.path.with_name(f"{self.path.name}-wal")))


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
