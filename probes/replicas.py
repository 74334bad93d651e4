"""Several replicas of one step: a recorder for each, taps that they share, and their readings put together."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from precscope.merged_scalars import merge_scalars
from precscope.probes.internals.distribution import Replicas, replica_here
from precscope.probes.recorder import Recorder
from precscope.replica_records import ReplicaSample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from precscope.probes.reading import Reading, TensorKey, TracedTensor

__all__ = ["ReplicaRecorder", "SharedTaps", "merged_reading", "recorder_for"]


class ReplicaRecorder(Recorder):
    """Stands in for `Recorder` where a strategy runs the step once for each replica: each has a recorder of its own.

    TensorFlow traces (or runs) the replicas in threads that take turns. What is asked for in a replica's thread
    concerns that replica; in cross-replica context, around them, all of them, and nothing can be recorded there.
    """

    def __init__(self, in_xla: bool, replicas: Replicas) -> None:
        self.in_xla = in_xla
        self._replicas = replicas
        self._recorders = [Recorder(in_xla, device) for device in replicas.devices]

    @property
    def traces(self) -> int:  # type: ignore[override]  # a plain attribute there
        """How often a replica's step was traced."""
        return sum(recorder.traces for recorder in self._recorders)

    @property
    def batch(self) -> int | None:
        """Usual batch size of one replica."""
        return self._recorders[0].batch

    @batch.setter
    def batch(self, batch: int | None) -> None:
        for recorder in self._recorders:
            recorder.batch = None if batch is None else -(-batch // len(self._recorders))

    @property
    def active(self) -> bool:
        """Whether a replica's step is being traced or run, in a place where something can be recorded."""
        here = self._here()
        return here is not None and here.active

    def place(self) -> str | None:
        """As `Recorder.place`, of the replica at hand."""
        here = self._here()
        return None if here is None else here.place()

    def begin(self) -> None:
        """Start a trace (or an eager step) of the replica at hand, or of all."""
        for recorder in self._concerned():
            recorder.begin()

    def cancel(self) -> None:
        """Forget an unfinished trace of the replica at hand, or of all."""
        for recorder in self._concerned():
            recorder.cancel()

    def record(self, key: TensorKey, x: Any, note: str | None = None) -> Any:
        """As `Recorder.record`, for the replica at hand."""
        here = self._here()
        return x if here is None else here.record(key, x, note)

    def record_update_of(self, key: TensorKey, before: Any, after: Any, gradient: Any) -> None:
        """As `Recorder.record_update_of`, for the replica at hand."""
        if (here := self._here()) is not None:
            here.record_update_of(key, before, after, gradient)

    def record_loss(self, loss: Any) -> None:
        """As `Recorder.record_loss`, for the replica at hand."""
        if (here := self._here()) is not None:
            here.record_loss(loss)

    def record_update(self, scale: Any, before: Any, after: Any) -> None:
        """As `Recorder.record_update`, for the replica at hand."""
        if (here := self._here()) is not None:
            here.record_update(scale, before, after)

    def end(self) -> None:
        """Finish the trace of the replica at hand, or of all."""
        for recorder in self._concerned():
            with tf.device(recorder.device):
                recorder.end()

    def prepare(self) -> None:
        """Stamp the step that is about to run."""
        for recorder in self._recorders:
            recorder.prepare()

    def read(self) -> Reading | None:
        """Return what all replicas of this process recorded; None if no tap fired. Waits for the devices."""
        readings = {
            self._replicas.first + number: reading
            for number, recorder in enumerate(self._recorders)
            if (reading := recorder.read()) is not None
        }
        return merged_reading(readings, self._replicas.total) if readings else None

    def _here(self) -> Recorder | None:
        number = replica_here(self._replicas.first)
        return None if number is None else self._recorders[number]

    def _concerned(self) -> Sequence[Recorder]:
        here = self._here()
        return self._recorders if here is None else [here]


def recorder_for(replicas: Replicas, in_xla: bool) -> Recorder:
    """Return what records the steps that these replicas run."""
    return ReplicaRecorder(in_xla, replicas) if replicas.are_several else Recorder(in_xla)


class SharedTaps:
    """Taps that are put on once, by the replica that comes first, and taken off by the last that leaves.

    The replicas' threads take turns in the middle of a step: each with taps of its own would tap the others' taps, and
    take off what another still needs.

    Args:
        install: Return contexts that put taps on for as long as they last.
    """

    def __init__(self, *install: Callable[[], AbstractContextManager[None]]) -> None:
        self._install = install
        self._users = 0
        self._stack = ExitStack()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Have the taps on for as long as the context lasts."""
        if self._users == 0:
            with ExitStack() as stack:
                for install in self._install:
                    stack.enter_context(install())
                self._stack = stack.pop_all()
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._users == 0:
                self._stack.close()


def merged_reading(readings: dict[int, Reading], total: int) -> Reading:
    """Return one reading of all replicas: counts and histograms added, minima and maxima over all.

    The loss that a replica hands to its optimizer is its share of the batch's: Keras divides by the number of replicas,
    as `tf.nn.compute_average_loss` does. So a replica's own mean is its share times that number, and the loss of the
    reading is the mean over the replicas.

    Args:
        readings: By the replica's number.
        total: Number of replicas, those of other workers included.
    """
    tensors: dict[TensorKey, TracedTensor] = {}
    for reading in readings.values():
        tensors |= {tensor.key: tensor for tensor in reading.tensors if tensor.key not in tensors}
    rows = {key: row for row, key in enumerate(tensors)}
    places = [np.array([rows[tensor.key] for tensor in reading.tensors], np.intp) for reading in readings.values()]
    first = next(iter(readings.values()))
    own = [
        ReplicaSample(
            number,
            None if reading.loss is None else reading.loss * total,
            _placed(reading.scalars, place, len(rows)),
        )
        for (number, reading), place in zip(readings.items(), places, strict=True)
    ]
    pairs = list(zip(readings.values(), places, strict=True))
    histograms = [_placed(item.histograms, place, len(rows)) for item, place in pairs]
    spoiled = [_placed(item.spoiled, place, len(rows)) for item, place in pairs]
    losses = [item.loss for item in own if item.loss is not None]
    return replace(
        first,
        tensors=tuple(tensors.values()),
        scalars=merge_scalars([item.scalars for item in own]),
        histograms=np.sum(histograms, axis=0, dtype=np.uint64),
        spoiled=np.max(spoiled, axis=0),  # every replica has a copy of each weight
        loss=sum(losses) / len(losses) if losses else None,
        replicas=tuple(own),
    )


def _placed(array: NDArray[Any], rows: NDArray[np.intp], length: int) -> NDArray[Any]:
    placed = np.zeros((length, *array.shape[1:]), array.dtype)
    placed[rows] = array
    return placed
