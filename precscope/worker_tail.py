"""Following one worker's file: a look reads what was committed since the last one, and keeps a bounded part of it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from precscope.database import FIRST_ROW, last_row, open_database, select_after
from precscope.device_records import DeviceInfo, DeviceSample
from precscope.lint_result import LintFinding
from precscope.origin_records import OriginRecord
from precscope.records import (
    CostRecord,
    LayerRecord,
    LossScaleRecord,
    NoticeRecord,
    ProgressRecord,
    SampleRecord,
    StepTimeRecord,
    TensorRecord,
)
from precscope.reference_records import ReferenceRecord, ReferenceStepRecord
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
_REFERENCE_STEPS = 4
#: Rows of a table that one look reads at most: a transaction that stays short never delays the writer's checkpoint.
_ROWS_A_LOOK = 5000
#: Rows of devices that are read once more: of one look at all of them, as many GPUs as a machine has.
_ROWS_AGAIN = 16

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
        lint: What layers' own code risks in 16 bits.
        samples: The sampled steps, thinned.
        recent: The last samples.
        fresh: What the last look found, the last `RECENT` samples of it.
        loss_scales: Looks at the optimizer, thinned.
        notices: The last ones.
        costs: By kind, as they were written last.
        step_times: Measured stretches of plain steps, thinned.
        origins: Where values turned non-finite.
        progress: How far the training was at each look.
        reference_steps: The last reference steps in float32.
        reference: What these measured.
        devices: By id.
        device_samples: The devices' states by id, thinned.
        is_behind: Whether there was more than one look reads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.layers: dict[str, LayerRecord] = {}
        self.tensors: list[TensorRecord] = []
        self.replicas: list[ReplicaRecord] = []
        self.lint: list[LintFinding] = []
        self.samples: Thinned[SampleRecord] = Thinned(_SERIES)
        self.recent: deque[SampleRecord] = deque(maxlen=RECENT)
        self.fresh: list[FreshSample] = []
        self.loss_scales: Thinned[LossScaleRecord] = Thinned(_SERIES)
        self.notices: deque[NoticeRecord] = deque(maxlen=RECENT)
        self.costs: tuple[CostRecord, ...] = ()
        self.step_times: Thinned[StepTimeRecord] = Thinned(_SERIES)
        self.origins: tuple[OriginRecord, ...] = ()
        self.progress: Thinned[ProgressRecord] = Thinned(_SERIES)
        self.reference_steps: deque[ReferenceStepRecord] = deque(maxlen=_REFERENCE_STEPS)
        self.reference: list[ReferenceRecord] = []
        self.devices: dict[str, DeviceInfo] = {}
        self.device_samples: dict[str, Thinned[DeviceSample]] = {}
        self.is_behind = False
        self._device_samples_seen: deque[DeviceSample] = deque(maxlen=2 * _ROWS_AGAIN)
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
        """Return the worker as if its last samples, `samples` at most, were all.

        Raises:
            RunDirectoryError: The file is damaged or unreadable.
        """
        last = tuple(self.recent)[-samples:]
        if last:  # some of them may have been thinned out since
            with open_database(self.path) as connection:
                there = samples_after(connection, last[0].index - 1)
            last = tuple(sample for sample in there if sample.index <= self._sample)
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
            results={},
            reference_steps=tuple(self.reference_steps),
            reference=tuple(self.reference),
            origins=self.origins,
            first_sample=last[0].index if last else 0,
            replicas=tuple(self.replicas),
            lint=tuple(self.lint),
        )

    def _read(self, connection: sqlite3.Connection) -> bool:
        self.is_behind = False
        layers = self._after(connection, LayerRecord)
        tensors = self._after(connection, TensorRecord)
        self.layers |= {layer.id: layer for layer in layers}
        self.tensors += tensors
        self.replicas += self._after(connection, ReplicaRecord)
        self.lint += self._after(connection, LintFinding)
        changed = [bool(layers), bool(tensors), self._read_samples(connection)]
        looks, stretches = self._after(connection, LossScaleRecord), self._after(connection, StepTimeRecord)
        self.loss_scales.extend(looks)
        self.step_times.extend(stretches)
        changed += [bool(looks), bool(stretches)]
        # These are written anew, not added to.
        origins, _ = select_after(connection, OriginRecord, FIRST_ROW)
        progress, _ = select_after(connection, ProgressRecord, FIRST_ROW)
        changed += [origins != self.origins, bool(progress) and progress[0] != self.progress.last]
        self.origins = origins
        if changed[-1]:
            self.progress.extend(progress)
        changed.append(self._read_reference(connection))
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

    def _read_reference(self, connection: sqlite3.Connection) -> bool:
        steps, tensors = self._after(connection, ReferenceStepRecord), self._after(connection, ReferenceRecord)
        if not steps and not tensors:
            return False
        self.reference_steps.extend(steps)
        kept = {(step.step, step.moment) for step in self.reference_steps}
        self.reference = [item for item in (*self.reference, *tensors) if (item.step, item.moment) in kept]
        return True

    def _read_devices(self, connection: sqlite3.Connection) -> bool:
        for device in (devices := self._after(connection, DeviceInfo)):
            self.devices[device.id] = device
        # The writer thins its looks at the devices, and then gives the last few row numbers once more.
        last = min(self._rows.get(DeviceSample, FIRST_ROW), last_row(connection, DeviceSample))
        self._rows[DeviceSample] = max(last - _ROWS_AGAIN, FIRST_ROW)
        samples = [
            sample for sample in self._after(connection, DeviceSample) if sample not in self._device_samples_seen
        ]
        for sample in samples:
            self.device_samples.setdefault(sample.device, Thinned(_SERIES)).extend([sample])
        self._device_samples_seen.extend(samples)
        return bool(devices or samples)

    def _after(self, connection: sqlite3.Connection, cls: type[Record]) -> tuple[Record, ...]:
        """Return the next records of a class that were not read yet."""
        most = -1 if cls in (LayerRecord, TensorRecord, ReferenceRecord) else _ROWS_A_LOOK
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
