"""Keeps what a session learns: turns readings into records, writes them, and stops recording when writing fails."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from precscope.errors import RunDirectoryError
from precscope.records import CostRecord, LossScaleRecord, NoticeRecord, RunStatus, SampleRecord, TensorRecord
from precscope.replica_records import ReplicaRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from precscope.probes.internals.distribution import Replicas
    from precscope.probes.model_records import ModelRecords
    from precscope.probes.reading import Reading, TensorKey
    from precscope.probes.sampling_loop import SampledStep
    from precscope.writer import RunWriter

__all__ = ["Keeper", "PrecScopeWarning"]


class PrecScopeWarning(UserWarning):
    """Something that PrecScope cannot record or had to switch off; the training goes on."""


class Keeper:
    """Writes one run.

    Args:
        writer: The run's writer.
        records: The model's layers.
        stop: Called when nothing can be written any more.
    """

    def __init__(self, writer: RunWriter, records: ModelRecords, stop: Callable[[], None]) -> None:
        self._writer = writer
        self._records = records
        self._stop = stop
        self._failed = False
        self._indices: dict[TensorKey, int] = {}
        self._samples = 0
        self._told: set[str] = set()

    @property
    def samples(self) -> int:
        """Number of samples written."""
        return self._samples

    @property
    def is_stopped(self) -> bool:
        """Whether nothing can be written any more, which the user was told."""
        return self._failed

    def now_unix_s(self) -> float:
        """Return the time in seconds since 1970, by the run's clock, which never jumps."""
        return self._writer.now_unix_s()

    def write(self, action: Callable[[RunWriter], None]) -> None:
        """Write; on a failure say so once and stop recording, for the training goes on."""
        if self._failed or not self._writer.is_mine:  # a forked process has nothing to say
            return
        try:
            action(self._writer)
        except RunDirectoryError as error:
            self._failed = True
            self._stop()
            self._warn(f"Recording stopped: {error} The training goes on; what was recorded until now can be read.")

    def tell(self, level: Literal["info", "warning", "error"], source: str, message: str, step: int | None) -> None:
        """Record a notice and, from "warning" up, tell the user: each message once."""
        if message in self._told:
            return
        self._told.add(message)
        self.write(lambda writer: writer.add_notice(NoticeRecord(step, level, source, message)))
        if level != "info":
            self._warn(message)

    def _warn(self, message: str) -> None:
        warnings.warn(f"PrecScope: {message}", PrecScopeWarning, stacklevel=2)

    def keep_layers(self) -> None:
        """Describe the model's layers, before anything ran."""
        self.write(lambda writer: writer.add_layers(self._records.layers()))

    def keep_replicas(self, replicas: Replicas) -> None:
        """Say which replicas this process runs, where there are several."""
        if replicas.are_several:
            numbered = enumerate(replicas.devices, start=replicas.first)
            records = [ReplicaRecord(number, replicas.worker, device) for number, device in numbered]
            self.write(lambda writer: writer.add_replicas(records))

    def keep_layers_sampled(self) -> None:
        """Describe the layers after a sampled step, with the reason where nothing of them is recorded."""
        self.write(lambda writer: writer.add_layers(self._records.layers(set(self._indices))))

    def keep_sample(
        self, sampled: SampledStep, reading: Reading, costs: tuple[CostRecord, ...], loss: float | None = None
    ) -> None:
        """Write one sample and the costs so far; `loss` stands in where the step's own was not seen."""
        indices = self._tensor_indices(reading)
        applied = _was_applied(reading)
        scalars, *own = [
            values if applied else _without_updates(values)
            for values in (reading.scalars, *(replica.scalars for replica in reading.replicas))
        ]
        current_bytes, peak_bytes = sampled.memory_bytes or (None, None)
        sample = SampleRecord(
            index=self._samples,
            step=sampled.step,
            time_unix_s=self.now_unix_s(),
            loss=reading.loss if reading.loss is not None else loss,
            loss_scale=reading.loss_scale,
            applied=applied,
            iterations=reading.updates_after,
            step_time_ns=sampled.step_time_ns,
            allocator_current_bytes=current_bytes,
            allocator_peak_bytes=peak_bytes,
        )
        order = np.argsort(indices)
        complete = len(indices) == len(self._indices)
        self.write(
            lambda writer: writer.add_sample(
                sample,
                scalars[order],
                reading.histograms[order],
                None if complete else indices[order],
                costs,
                [
                    replace(replica, scalars=values[order])
                    for replica, values in zip(reading.replicas, own, strict=True)
                ],
            )
        )
        self._samples += 1
        if self._writer.samples_thinned:
            self.tell(
                "info",
                "recording",
                "the run directory reached its limit (run_size_mib): old samples were thinned out evenly, and will be "
                "again. Samples with infinities, NaN or a skipped step go last.",
                sampled.step,
            )

    def _tensor_indices(self, reading: Reading) -> Any:
        """Return each recorded tensor's position in the run, new ones added to it."""
        new = [tensor for tensor in reading.tensors if tensor.key not in self._indices]
        if not new and not self._samples:
            self.keep_layers_sampled()
        if new:
            first = len(self._indices)
            self._indices |= {tensor.key: first + position for position, tensor in enumerate(new)}
            records = [
                TensorRecord(
                    index=self._indices[t.key],
                    layer=t.key.layer,
                    kind=t.key.kind,
                    name=t.key.name,
                    dtype=t.dtype,
                    shape=t.shape,
                    calls=t.calls,
                    note=t.note,
                )
                for t in new
            ]
            self.keep_layers_sampled()
            self.write(lambda writer: writer.add_tensors(records))
        return np.array([self._indices[tensor.key] for tensor in reading.tensors], np.int64)

    def keep_loss_scale(self, record: LossScaleRecord) -> None:
        """Write one look at the optimizer."""
        self.write(lambda writer: writer.add_loss_scale(record))

    def close(self, status: RunStatus, error: str | None, costs: tuple[CostRecord, ...]) -> None:
        """Write the costs and how the training ended."""
        self.write(lambda writer: writer.set_costs(costs))
        self._writer.close(status, error)


def _without_updates(scalars: NDArray[np.void]) -> NDArray[np.void]:
    """Return the scalars of a step that updated nothing, as far as is known."""
    scalars = scalars.copy()
    scalars["updates"] = scalars["lost_updates"] = 0
    return scalars


def _was_applied(reading: Reading) -> bool | None:
    if reading.updates_before is None or reading.updates_after is None:
        return None
    return reading.updates_after > reading.updates_before
