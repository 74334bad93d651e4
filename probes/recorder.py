"""Statistics gathered while a train step is traced or runs eagerly, and the stacked buffer that carries them out.

The probed step calls `begin`, then `record` for each tensor, then `end`. In a graph, `end` assigns one matrix to one
variable, and `read` fetches it: one read a sample. Calls of the same layer are merged, so a shared layer has one row.

Inside a loop (an RNN's cell) tensors cannot leave the loop's graph, so a row is merged into a variable of its own at
every iteration.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from precscope.formats import FORMATS
from precscope.probes.internals.distribution import plain_variable
from precscope.probes.internals.graphs import current_graph, in_control_flow_of
from precscope.probes.internals.xla import tie
from precscope.probes.lost_updates import count_lost_updates
from precscope.probes.statistic import (
    EMPTY_ROW,
    ROW_WIDTH,
    Partials,
    bucket_size,
    decode_rows,
    finish,
    merge_rows,
    pad_to_bucket,
    partial_statistics,
    partial_statistics_of_many,
)
from precscope.statistics import HISTOGRAM_LIMIT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from precscope.records import TensorKind
    from precscope.replica_records import ReplicaSample

__all__ = ["Reading", "Recorder", "TensorKey", "TracedTensor", "reading_of"]

# Row 0 of the buffer: a stamp that tells whether this buffer was written by the step just run, and the step's scalars.
_STAMP, _LOSS, _SCALE, _BEFORE, _AFTER, _HAS_LOSS, _HAS_SCALE, _HAS_UPDATE = range(8)
_EXTRAS = 3  # updates, lost updates, weights that the update left non-finite


class TensorKey(NamedTuple):
    """What identifies a recorded tensor: layer id, kind, and output index or variable name."""

    layer: str
    kind: TensorKind
    name: str


@dataclass
class TracedTensor:
    """What is known of a recorded tensor when the step was traced."""

    key: TensorKey
    dtype: str
    shape: tuple[int | None, ...] | None
    calls: int | None = 0
    note: str | None = None


@dataclass(frozen=True)
class _Waiting:
    """A tensor that is described at the end of the step, together with others of its size."""

    tensor: Any
    dtype: str


@dataclass(frozen=True)
class Reading:
    """What one probed step recorded; arrays are ordered like `tensors`.

    `spoiled` tells of each weight how many elements were finite before the update and not after it. Where several
    replicas trained, the numbers are over those of this process, and `replicas` has each one's.
    """

    tensors: tuple[TracedTensor, ...]
    scalars: NDArray[np.void]
    histograms: NDArray[np.uint64]
    spoiled: NDArray[np.int64]
    loss: float | None
    loss_scale: float | None
    updates_before: int | None
    updates_after: int | None
    replicas: tuple[ReplicaSample, ...] = ()


@dataclass
class _Trace:
    """What is gathered during one trace (or one eager step)."""

    graph: Any
    tensors: dict[TensorKey, TracedTensor] = field(default_factory=dict)
    # Each tensor's parts, one a call: Partials or tensors to be described together under XLA, finished rows otherwise,
    # variables for loops.
    parts: dict[TensorKey, list[Any]] = field(default_factory=dict)
    updates: dict[TensorKey, tuple[Any, Any, Any]] = field(default_factory=dict)
    values: dict[int, Any] = field(default_factory=dict)
    accumulators: list[Any] = field(default_factory=list)


class Recorder:
    """Gathers the statistics of one probed function.

    Args:
        in_xla: Whether the step is compiled by XLA as a whole; otherwise each statistic is compiled on its own.
        device: Where the step runs; None to leave that to TensorFlow.

    Attributes:
        device: Where the step runs.
        traces: How often a step was traced.
        batch: Usual batch size, where Keras traces the step without knowing it.
    """

    def __init__(self, in_xla: bool, device: str | None = None) -> None:
        self.device = device
        self._in_xla = in_xla
        self._trace: _Trace | None = None
        self._buffers: list[tuple[tuple[TracedTensor, ...], Any]] = []
        self._accumulators: list[Any] = []
        self._eager: tuple[tuple[TracedTensor, ...], Any] | None = None
        self._stamp = plain_variable(np.int64(0), "precscope_stamp", device)
        self._samples = 0
        self.traces = 0
        self.batch: int | None = None
        self._part_functions: dict[str, Any] = {}

    @property
    def active(self) -> bool:
        """Whether a step is being traced or run, in a place where something can be recorded."""
        return self._trace is not None and self.place() is not None

    def place(self) -> str | None:
        """Return "root" in the step's own graph, "loop" inside its control flow, None where nothing may be recorded."""
        trace = self._trace
        if trace is None:
            return None
        graph = current_graph()
        if graph is trace.graph:
            return "root"
        return "loop" if trace.graph is not None and in_control_flow_of(graph, trace.graph) else None

    def begin(self) -> None:
        """Start a trace (or an eager step) in the current graph."""
        self._trace = _Trace(current_graph())
        if self._trace.graph is not None:
            self.traces += 1

    def cancel(self) -> None:
        """Forget an unfinished trace, after an exception."""
        self._trace = None

    def record(self, key: TensorKey, x: Any, note: str | None = None) -> Any:
        """Record the statistics of the float tensor `x` and return what to go on with in its place."""
        trace = self._trace
        place = self.place()
        if trace is None or place is None:
            return x
        traced = trace.tensors.get(key)
        if traced is None:
            shape = None if x.shape.rank is None else tuple(x.shape.as_list())
            traced = trace.tensors[key] = TracedTensor(key, _format_name(x.dtype), shape, 0, note)
        with tf.name_scope("precscope"):
            if place == "loop":
                traced.calls, traced.note = None, "merged over the iterations of a loop"
                self._accumulate(key, x, traced.dtype)
                return x
            traced.calls = None if traced.calls is None else traced.calls + 1
            part, x = self._part(key, x, traced.dtype)
            trace.parts.setdefault(key, []).append(part)
        return x

    def _part(self, key: TensorKey, x: Any, dtype: str) -> tuple[Any, Any]:
        if not self._in_xla:
            return self._row(x, dtype), x
        if key.kind in ("weight", "weight_gradient") and x.shape.is_fully_defined():
            return _Waiting(x, dtype), x  # all of them exist at the step's end: equal sizes are described together
        if dtype not in self._part_functions:
            # One function for all tensors of a format, traced once for each shape: what it holds would be some hundred
            # operations a tensor, and building those took most of a minute for a ResNet-50.
            self._part_functions[dtype] = tf.function(
                functools.partial(_tied_partials, dtype=dtype, batch=self.batch), autograph=False
            )
        x, count, padding, subset, looked_at, *rows = self._part_functions[dtype](x)
        return Partials(count, tuple(rows), padding, subset, looked_at), x

    def _row(self, x: Any, dtype: str) -> Any:
        values = pad_to_bucket(x)
        if values.shape[0] is not None and values.shape[0] <= HISTOGRAM_LIMIT:
            return _row_function(dtype)(values, tf.size(x, tf.int64))
        return _row_function(dtype)(values, None)

    def _accumulate(self, key: TensorKey, x: Any, dtype: str) -> None:
        trace = self._trace
        assert trace is not None
        accumulator = self._accumulator(len(trace.accumulators))
        partials = partial_statistics(x, FORMATS[dtype], batch=self.batch)
        row = finish([partials])[0] if self._in_xla else self._row(x, dtype)
        accumulator.assign(merge_rows(accumulator.read_value(), row))
        trace.accumulators.append(accumulator)
        # Keras calls an RNN's cell once before the loop, only to see what it returns: that call is not the loop's.
        before = [part for part in trace.parts.get(key, ()) if isinstance(part, tf.Variable)]
        trace.parts[key] = [*before, accumulator]

    def _accumulator(self, position: int) -> Any:
        """Return the variable of the `position`-th place in a loop: a tf.function may create none in a later trace."""
        if position == len(self._accumulators):
            self._accumulators.append(plain_variable(EMPTY_ROW, "precscope_loop", self.device))
        return self._accumulators[position]

    def record_update_of(self, key: TensorKey, before: Any, after: Any, gradient: Any) -> None:
        """Record a weight before and after the update with its gradient, to count updates and lost updates."""
        if self._trace is not None and self.place() == "root":
            self._trace.updates[key] = (before, after, gradient)

    def record_loss(self, loss: Any) -> None:
        """Record the step's unscaled loss; the first one counts."""
        self._record_values({_LOSS: _float_bits(loss), _HAS_LOSS: 1})

    def record_update(self, scale: Any, before: Any, after: Any) -> None:
        """Record the loss scale and the optimizer's counter before and after the update; the first one counts."""
        values = {_BEFORE: before, _AFTER: after, _HAS_UPDATE: 1}
        if scale is not None:
            values |= {_SCALE: _float_bits(scale), _HAS_SCALE: 1}
        self._record_values(values)

    def _record_values(self, values: dict[int, Any]) -> None:
        if self._trace is None or self.place() != "root" or any(column in self._trace.values for column in values):
            return
        self._trace.values |= {column: tf.cast(tf.reshape(value, []), tf.int64) for column, value in values.items()}

    def take(self) -> tuple[tuple[TracedTensor, ...], Any]:
        """Finish the trace and return its tensors and the matrix that `reading_of` reads, in place of a buffer."""
        trace = self._trace
        assert trace is not None
        with tf.name_scope("precscope"):
            matrix = self._matrix(trace)
            for accumulator in trace.accumulators:
                accumulator.assign(EMPTY_ROW)
        self._trace = None
        return tuple(trace.tensors.values()), matrix

    def end(self) -> None:
        """Finish the trace: stack all rows and hand them to the buffer."""
        trace = self._trace
        assert trace is not None
        with tf.name_scope("precscope"):
            matrix = self._matrix(trace)
            tensors = tuple(trace.tensors.values())
            if trace.graph is None:
                self._eager = (tensors, matrix)
            else:
                self._buffer(tensors, matrix.shape).assign(matrix)
                for accumulator in trace.accumulators:
                    accumulator.assign(EMPTY_ROW)
        self._trace = None

    def _matrix(self, trace: _Trace) -> Any:
        zero = tf.constant(0, tf.int64)
        values = [trace.values.get(column, zero) for column in range(8)]
        values[_STAMP] = self._stamp.read_value()
        first = tf.pad(tf.stack(values), [[0, ROW_WIDTH + _EXTRAS - 8]])[None]
        if not trace.parts:
            return first
        rows = self._rows(trace)
        return tf.concat([first, tf.concat([rows, self._lost_updates(trace)], 1)], 0)

    def _lost_updates(self, trace: _Trace) -> Any:
        """Return what became of every weight, 0 for tensors that are none: int64 [tensors, _EXTRAS]."""
        none = tf.zeros([1, _EXTRAS], tf.int64)
        table = tf.concat([count_lost_updates(list(trace.updates.values())), none], 0) if trace.updates else none
        positions = {key: position for position, key in enumerate(trace.updates)}
        return tf.gather(table, [positions.get(key, len(positions)) for key in trace.tensors])

    def _rows(self, trace: _Trace) -> Any:
        """Return the finished row of every tensor, its calls merged: int64 [tensors, ROW_WIDTH]."""
        finished = _finished_parts([part for key in trace.tensors for part in trace.parts[key]])
        rows = []
        for key in trace.tensors:
            calls = [finished[id(part)] for part in trace.parts[key]]
            row = calls[0]
            for other in calls[1:]:
                row = merge_rows(row, other)
            rows.append(row)
        return tf.stack(rows)

    def _buffer(self, tensors: tuple[TracedTensor, ...], shape: Any) -> Any:
        for known, buffer in self._buffers:
            if [t.key for t in known] == [t.key for t in tensors]:
                return buffer
        buffer = plain_variable(np.zeros(shape.as_list(), np.int64), "precscope_buffer", self.device)
        self._buffers.append((tensors, buffer))
        return buffer

    def prepare(self) -> None:
        """Stamp the step that is about to run, so that `read` can tell what it wrote."""
        self._samples += 1
        self._eager = None
        self._stamp.assign(self._samples)

    def read(self) -> Reading | None:
        """Return what the step that just ran recorded, or None if no tap fired. Waits for the device."""
        if self._eager is not None:
            return reading_of(self._eager[0], self._eager[1].numpy())
        for tensors, buffer in self._buffers:
            matrix = buffer.numpy()
            if matrix[0, _STAMP] == self._samples:
                return reading_of(tensors, matrix)
        return None


@functools.cache
def _row_function(dtype: str) -> Any:
    """Return the compiled function for all tensors of a format, with one version for each shape.

    One for the whole process: another session, or a model that is compiled anew, finds it compiled.
    """
    float_format = FORMATS[dtype]
    return tf.function(
        lambda values, count: finish([partial_statistics(values, float_format, count)])[0],
        jit_compile=True,
        autograph=False,
    )


def _tied_partials(x: Any, dtype: str, batch: int | None) -> list[Any]:
    """Return `x` to go on with, and its partial statistics: count, padding, subset, looked at, rows. Inside XLA."""
    if x.shape.is_fully_defined() and x.shape.num_elements() <= HISTOGRAM_LIMIT:  # few sizes, few kernels
        partials = partial_statistics(pad_to_bucket(x), FORMATS[dtype], tf.size(x, tf.int64))
    else:
        partials = partial_statistics(x, FORMATS[dtype], batch=batch)
    # The tie: the statistic is taken at once, in a kernel of its own, and nothing that it needs lives longer.
    x, subset, *rows = tie([x, partials.subset, *partials.rows])
    return [x, partials.count, partials.padding, subset, partials.looked_at, *rows]


def _finished_parts(parts: list[Any]) -> dict[int, Any]:
    """Return the finished row [ROW_WIDTH] of every part, by the part's id."""
    groups: dict[tuple[int, str], list[_Waiting]] = {}
    for part in parts:
        if isinstance(part, _Waiting):
            groups.setdefault((bucket_size(part.tensor.shape.num_elements()), part.dtype), []).append(part)
    owners: list[Any] = [part for part in parts if isinstance(part, Partials)]
    partials = list(owners)
    for (_, dtype), group in groups.items():
        owners += group
        partials.append(partial_statistics_of_many([part.tensor for part in group], FORMATS[dtype]))
    rows = dict(zip(map(id, owners), tf.unstack(finish(partials)) if partials else (), strict=True))
    others = [part for part in parts if id(part) not in rows]
    return rows | {id(part): part.read_value() if isinstance(part, tf.Variable) else part for part in others}


def _float_bits(value: Any) -> Any:
    value = tf.cast(tf.convert_to_tensor(value), tf.float32)
    return tf.bitcast(tf.reduce_mean(value) if value.shape.rank else value, tf.int32)


def _format_name(dtype: Any) -> str:
    return dtype.name if dtype.name in FORMATS else "float32"  # float64 is recorded as float32


def reading_of(tensors: tuple[TracedTensor, ...], matrix: NDArray[np.int64]) -> Reading:
    """Return what the matrix of a step says about its tensors."""
    values, rows = matrix[0], matrix[1:]
    scalars, histograms = decode_rows(rows[:, :ROW_WIDTH])
    scalars["updates"], scalars["lost_updates"] = rows[:, ROW_WIDTH], rows[:, ROW_WIDTH + 1]
    updated = bool(values[_HAS_UPDATE])
    return Reading(
        tensors=tensors,
        scalars=scalars,
        histograms=histograms,
        spoiled=rows[:, ROW_WIDTH + 2],
        loss=_float(values[_LOSS]) if values[_HAS_LOSS] else None,
        loss_scale=_float(values[_SCALE]) if values[_HAS_SCALE] else None,
        updates_before=int(values[_BEFORE]) if updated else None,
        updates_after=int(values[_AFTER]) if updated else None,
    )


def _float(bits: np.int64) -> float:
    return float(np.int32(bits).view(np.float32))
