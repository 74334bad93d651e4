"""Reading a run: typed records and NumPy arrays, also while it is written and after its process was killed."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from precscope.errors import RunDirectoryError
from precscope.kept_batches import KeptBatch, kept_batches
from precscope.layer_time import LayerTime, layer_times
from precscope.placed_workers import (
    PlacedWorkers,
    device_names,
    merged_costs,
    merged_notices,
    merged_step_times,
    place_workers,
)
from precscope.records import SCALAR_DTYPE
from precscope.run_failures import damaged
from precscope.run_file import read_run_file
from precscope.run_frame import run_frame
from precscope.rundir import find_run_directory, worker_file, worker_files
from precscope.spread import Spread, spread_of
from precscope.statistics import TensorStatistics
from precscope.suggest import did_you_mean
from precscope.verification import Verification, read_verification
from precscope.workers import lost_worker_notices, read_workers, worker_record

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from precscope.device_records import DeviceInfo, DeviceSample
    from precscope.lint_result import LintFinding
    from precscope.op_records import OpRecord, ProfiledWindow
    from precscope.origin_records import OriginRecord
    from precscope.records import (
        CostRecord,
        LayerRecord,
        LossScaleRecord,
        NoticeRecord,
        RunRecord,
        RunStatus,
        SampleRecord,
        StepTimeRecord,
        TensorKind,
        TensorRecord,
    )
    from precscope.reference_records import ReferenceRecord, ReferenceStepRecord
    from precscope.replica_records import ReplicaRecord, ReplicaSample, WorkerRecord
    from precscope.reports.figures import Figures
    from precscope.worker import Worker

__all__ = ["Run", "merge_workers", "open_run"]

_SCALARS = SCALAR_DTYPE.names or ()
_COUNTS = [
    item.name for item in fields(TensorStatistics) if item.name in _SCALARS and SCALAR_DTYPE[item.name].kind == "u"
]


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """One run as it was committed when it was opened. Arrays are read when they are first asked for, and kept.

    Attributes:
        path: The run directory.
        record: What was trained, on what, and how it ended.
        process_alive: Whether the process that recorded the run lives; None where that cannot be seen (another host).
        layers: In the order of the forward pass.
        tensors: By index.
        samples: By index, in the order of time. Where several replicas or workers trained, what they recorded of one
            step is one sample: counts are added, minima and maxima are over all, the loss is the mean.
        loss_scales: Looks at the optimizer, in the order of time.
        notices: What the session had to say.
        costs: What PrecScope cost; of several workers, what it cost one on average.
        step_times: Measured stretches of plain steps, in the order of time.
        profiled_window: The train steps over which `op_times` add up; None where no op time was recorded.
        op_times: What each op cost in that window, the costliest first; of the first worker that recorded any.
        devices: The devices of the process, GPUs or else the host.
        device_samples: Their state, in the order of time.
        results: Metrics at the end of each epoch, by name, as Keras' history has them; empty without one.
        reference_steps: Reference steps in float32, in the order of time; empty where none was taken.
        reference: What each measured, tensor by tensor.
        origins: Where values turned infinite or NaN, in the order of the steps; empty where none did.
        replicas: The model's replicas, by number; empty where there was one.
        lint: What layers' own code risks in 16 bits, as `precscope lint` says it; seen in the traced step, each once.
        workers: The processes that trained, also those whose file is missing.
    """

    path: Path
    record: RunRecord
    process_alive: bool | None
    layers: tuple[LayerRecord, ...]
    tensors: tuple[TensorRecord, ...]
    samples: tuple[SampleRecord, ...]
    loss_scales: tuple[LossScaleRecord, ...]
    notices: tuple[NoticeRecord, ...]
    costs: tuple[CostRecord, ...]
    step_times: tuple[StepTimeRecord, ...]
    profiled_window: ProfiledWindow | None
    op_times: tuple[OpRecord, ...]
    devices: tuple[DeviceInfo, ...]
    device_samples: tuple[DeviceSample, ...]
    results: dict[str, list[float]]
    reference_steps: tuple[ReferenceStepRecord, ...]
    reference: tuple[ReferenceRecord, ...]
    origins: tuple[OriginRecord, ...]
    replicas: tuple[ReplicaRecord, ...]
    lint: tuple[LintFinding, ...]
    workers: tuple[WorkerRecord, ...]
    _placed: PlacedWorkers

    def __repr__(self) -> str:
        sizes = f"{len(self.layers)} layers, {len(self.tensors)} tensors, {len(self.samples)} samples"
        return f"<Run '{self.path}' ({self.status}): {sizes}>"

    @property
    def status(self) -> RunStatus | Literal["killed"]:
        """How the run ended: the record's status, but "killed" where it says "running" and the process is gone."""
        if self.record.status == "running" and self.process_alive is False:
            return "killed"
        return self.record.status

    @cached_property
    def verification(self) -> Verification | None:
        """What `precscope verify` showed by replaying batches; None where it has not run.

        Raises:
            RunDirectoryError: It is damaged, or was written by a newer PrecScope.
        """
        return read_verification(self.path)

    @cached_property
    def scalars(self) -> NDArray[np.void]:
        """SCALAR_DTYPE [samples, tensors], read-only; `count` is 0 where a tensor was not recorded in a sample.

        Raises:
            RunDirectoryError: The file cannot be read any more.
        """
        return _frozen(self._placed.scalars())

    def histograms(self, sample: int) -> NDArray[np.uint64]:
        """Return the exponent histograms of one sample, uint64 [tensors, HISTOGRAM_BINS], read-only.

        Raises:
            IndexError: There is no such sample.
            RunDirectoryError: The file cannot be read any more.
        """
        number = range(len(self.samples))[sample]
        if number not in self._last_histograms:
            self._last_histograms.clear()
            self._last_histograms[number] = _frozen(self._placed.histograms(number))
        return self._last_histograms[number]

    def total_histograms(self) -> NDArray[np.uint64]:
        """Return the exponent histograms summed over all samples, uint64 [tensors, HISTOGRAM_BINS], read-only.

        Raises:
            RunDirectoryError: The file cannot be read any more.
        """
        return self._total_histograms

    def statistics(self, sample: int, tensor: int) -> TensorStatistics:
        """Return what is known of one tensor at one sample; `count` is 0 where it was not recorded.

        Raises:
            IndexError: There is no such sample or tensor.
            RunDirectoryError: The file cannot be read any more.
        """
        dtype = self.tensors[tensor].dtype
        return _statistics(dtype, self.scalars[sample, tensor], self.histograms(sample)[tensor])

    def replica_samples(self, sample: int) -> tuple[ReplicaSample, ...]:
        """Return what each replica computed in a sample, by its number: its loss and the scalars of all tensors.

        Raises:
            IndexError: There is no such sample.
            RunDirectoryError: The file cannot be read any more.
        """
        return self._placed.replica_samples(range(len(self.samples))[sample])

    def layer(self, id: str) -> LayerRecord:
        """Return the layer called `id`.

        Raises:
            RunDirectoryError: There is no such layer; the message names the nearest.
        """
        layer = self._layers_by_id.get(id)
        if layer is None:
            hint = did_you_mean(id, self._layers_by_id)
            raise RunDirectoryError(f"The run in '{self.path}' has no layer {id!r}.{hint}")
        return layer

    def find(self, layer: str | None = None, kind: TensorKind | None = None) -> tuple[TensorRecord, ...]:
        """Return the tensors of one layer, of one kind, or both, by index.

        Raises:
            RunDirectoryError: There is no such layer.
        """
        layer_id = None if layer is None else self.layer(layer).id
        return tuple(t for t in self.tensors if layer_id in (None, t.layer) and kind in (None, t.kind))

    def layer_times(self) -> tuple[LayerTime, ...]:
        """Return milliseconds of a train step by layer and part, the costliest first; none without op times."""
        return () if self.profiled_window is None else layer_times(self.op_times, self.profiled_window.steps)

    def step_time_ns(self) -> Spread | None:
        """Return the time of a plain step, each stretch counted by its steps; None where none was measured."""
        times = self.step_times
        return spread_of([item.mean_time_ns for item in times], [item.steps for item in times])

    def examples_per_s(self) -> float | None:
        """Return the examples in a second of plain steps, from the median step time; None where it is not known.

        It is not where stretches had different batches.
        """
        batches = {item.batch for item in self.step_times}
        time_ns, batch = self.step_time_ns(), batches.pop() if len(batches) == 1 else None
        return None if time_ns is None or batch is None else batch / time_ns.median * 1e9

    @cached_property
    def kept_batches(self) -> tuple[KeptBatch, ...]:
        """The training batches kept in the run directory, by step; none unless `keep_batches_mib` was set."""
        return kept_batches(self.path)

    @property
    def figures(self) -> Figures:
        """Figures of this run by plotly, each made when it is asked for: `run.figures.range_map()`."""
        gallery: type[Figures] = import_module("precscope.reports.figures").Figures
        return gallery(self)

    def to_pandas(self) -> pd.DataFrame:
        """Return a row for each tensor and sample, with its layer, kind, step and statistics.

        Raises:
            PrecScopeError: pandas is not installed.
            RunDirectoryError: The file cannot be read any more.
        """
        return run_frame(self)

    def _repr_html_(self) -> str:
        """Show the run in a notebook: verdict, findings, and how to see more."""
        text: str = import_module("precscope.reports.page").render_summary(self)
        return text

    def reload(self) -> Run:
        """Return the run as it is committed now."""
        return open_run(self.path)

    @cached_property
    def _layers_by_id(self) -> dict[str, LayerRecord]:
        return {layer.id: layer for layer in self.layers}

    @cached_property
    def _last_histograms(self) -> dict[int, NDArray[np.uint64]]:
        return {}  # of one sample: reports ask for its tensors one by one

    @cached_property
    def _total_histograms(self) -> NDArray[np.uint64]:
        return _frozen(self._placed.total_histograms())


def open_run(path: str | os.PathLike[str]) -> Run:
    """Return the run in the directory `path`: what is committed now, also while it is written or after a kill.

    Raises:
        RunDirectoryError: `path` is no run directory, the run is damaged, or a newer PrecScope wrote it.
    """
    directory = find_run_directory(path)
    record, process = read_run_file(directory)
    alive = process.is_alive()
    if record.status == "running" and alive is False:
        record, process = read_run_file(directory)  # it may have ended in good order between the two looks
    if not worker_files(directory) and record.status != "running":
        raise damaged(worker_file(directory, 0), "is missing")
    return merge_workers(directory, record, alive, *read_workers(directory, record))


def merge_workers(
    directory: Path,
    record: RunRecord,
    alive: bool | None,
    workers: Sequence[Worker],
    lost: Sequence[WorkerRecord] = (),
) -> Run:
    """Return the run of which these are the workers; what they recorded of one step is put together.

    Args:
        directory: The run directory.
        record: What `run.yaml` says.
        alive: Whether the process that wrote it lives.
        workers: Those whose files were read, by number.
        lost: What is known of the others.
    """
    placed = place_workers(workers)
    records = sorted([*(worker_record(worker, record, alive) for worker in workers), *lost], key=lambda w: w.number)
    names = device_names(workers)
    return Run(
        path=directory,
        record=record,
        process_alive=alive,
        layers=placed.layers,
        tensors=placed.tensors,
        samples=placed.samples,
        # All workers train in step, with one loss scale: one worker's looks tell everything.
        loss_scales=next((worker.loss_scales for worker in workers if worker.loss_scales), ()),
        notices=(*lost_worker_notices(records), *merged_notices(workers)),
        costs=merged_costs(workers),
        step_times=merged_step_times(workers),
        profiled_window=next((worker.profiled_windows[0] for worker in workers if worker.profiled_windows), None),
        op_times=next((worker.op_times for worker in workers if worker.profiled_windows), ()),
        devices=tuple(
            replace(item, id=names[place, item.id]) for place, worker in enumerate(workers) for item in worker.devices
        ),
        device_samples=tuple(
            replace(item, device=names.get((place, item.device), item.device))
            for place, worker in enumerate(workers)
            for item in worker.device_samples
        ),
        results=next((worker.results for worker in workers if worker.results), {}),
        reference_steps=tuple(item for worker in workers for item in worker.reference_steps),
        reference=tuple(item for worker in workers for item in worker.reference),
        origins=tuple(sorted((item for worker in workers for item in worker.origins), key=lambda item: item.step)),
        replicas=tuple(sorted((item for worker in workers for item in worker.replicas), key=lambda item: item.number)),
        lint=tuple(dict.fromkeys(item for worker in workers for item in worker.lint)),
        workers=tuple(records),
        _placed=placed,
    )


def _statistics(dtype: str, scalars: np.void, histogram: NDArray[np.uint64]) -> TensorStatistics:
    """Build the typed statistics: a number without meaning becomes None (see `SCALAR_DTYPE`)."""
    counts = TensorStatistics(dtype, **{name: int(scalars[name]) for name in _COUNTS}, histogram=histogram)
    if not counts.finite:
        return counts
    mean, rms = (float(scalars[name]) for name in ("mean", "rms"))
    squares_vanished = rms == 0 and counts.nonzero > 0  # they left float32 at its lower end
    return replace(
        counts,
        min=float(scalars["min"]),
        max=float(scalars["max"]),
        smallest_nonzero=float(scalars["smallest_nonzero"]) if counts.nonzero else None,
        mean=mean if math.isfinite(mean) else None,
        rms=rms if math.isfinite(rms) and not squares_vanished else None,
    )


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array
