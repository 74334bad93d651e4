"""Statistics gathered while a train step is traced or runs eagerly, and the stacked buffer that carries them out.

The probed step calls `begin`, then `record` for each tensor, then `end`. In a graph, `end` assigns one matrix to one
variable, and `read` fetches it: one read a sample. Calls of the same layer are merged, so a shared layer has one row.

Inside a loop (an RNN's cell) tensors cannot leave the loop's graph, so a row is merged into a variable of its own at
every iteration.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from precscope.probes.internals.distribution import plain_variable
from precscope.probes.internals.graphs import current_graph, in_control_flow_of
from precscope.probes.lost_updates import count_lost_updates
from precscope.probes.reading import (
    UPDATE_COLUMNS,
    Header,
    TensorKey,
    TracedTensor,
    float_bits,
    header_row,
    reading_of,
)
from precscope.probes.statistic import EMPTY_ROW, merge_rows
from precscope.probes.tensor_rows import TensorRows, finished_rows, format_name

if TYPE_CHECKING:
    from precscope.probes.reading import Reading

__all__ = ["Recorder"]


@dataclass
class _Trace:
    """What is gathered during one trace (or one eager step)."""

    graph: Any
    tensors: dict[TensorKey, TracedTensor] = field(default_factory=dict)
    # Each tensor's parts, one a call, as `finished_rows` takes them; a variable for those in loops.
    parts: dict[TensorKey, list[Any]] = field(default_factory=dict)
    updates: dict[TensorKey, tuple[Any, Any, Any]] = field(default_factory=dict)
    header: dict[Header, Any] = field(default_factory=dict)
    accumulators: list[Any] = field(default_factory=list)


class Recorder:
    """Gathers the statistics of one probed function.

    Args:
        in_xla: Whether the step is compiled by XLA as a whole; otherwise each statistic is compiled on its own.
        device: Where the step runs; None to leave that to TensorFlow.

    Attributes:
        in_xla: Whether the step is compiled by XLA as a whole.
        device: Where the step runs.
        traces: How often a step was traced.
        batch: Usual batch size, where Keras traces the step without knowing it.
    """

    def __init__(self, in_xla: bool, device: str | None = None) -> None:
        self.in_xla = in_xla
        self.device = device
        self.traces = 0
        self.batch: int | None = None
        self._rows = TensorRows(in_xla)
        self._trace: _Trace | None = None
        self._buffers: list[tuple[tuple[TracedTensor, ...], Any]] = []
        self._accumulators: list[Any] = []
        self._eager: tuple[tuple[TracedTensor, ...], Any] | None = None
        self._stamp = plain_variable(np.int64(0), "precscope_stamp", device)
        self._samples = 0

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
        self._rows.begin()
        if self._trace.graph is not None:
            self.traces += 1

    def cancel(self) -> None:
        """Forget an unfinished trace, after an exception."""
        self._trace = None

    # What the taps see while the step is traced.

    def record(self, key: TensorKey, x: Any, note: str | None = None) -> Any:
        """Record the statistics of the float tensor `x` and return what to go on with in its place."""
        trace = self._trace
        place = self.place()
        if trace is None or place is None:
            return x
        traced = trace.tensors.get(key)
        if traced is None:
            shape = None if x.shape.rank is None else tuple(x.shape.as_list())
            traced = trace.tensors[key] = TracedTensor(key, format_name(x.dtype), shape, 0, note)
        with tf.name_scope("precscope"):
            if place == "loop":
                traced.calls, traced.note = None, "merged over the iterations of a loop"
                self._accumulate(trace, key, self._rows.row_in_loop(x, traced.dtype, self.batch))
                return x
            traced.calls = None if traced.calls is None else traced.calls + 1
            part, x = self._rows.part(x, traced.dtype, self.batch, key.kind)
            trace.parts.setdefault(key, []).append(part)
        return x

    def _accumulate(self, trace: _Trace, key: TensorKey, row: Any) -> None:
        accumulator = self._accumulator(len(trace.accumulators))
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
        self._record_header({Header.LOSS: float_bits(loss), Header.HAS_LOSS: 1})

    def record_update(self, scale: Any, before: Any, after: Any) -> None:
        """Record the loss scale and the optimizer's counter before and after the update; the first one counts."""
        values = {Header.UPDATES_BEFORE: before, Header.UPDATES_AFTER: after, Header.HAS_UPDATE: 1}
        if scale is not None:
            values |= {Header.SCALE: float_bits(scale), Header.HAS_SCALE: 1}
        self._record_header(values)

    def _record_header(self, values: dict[Header, Any]) -> None:
        if self._trace is None or self.place() != "root" or any(column in self._trace.header for column in values):
            return
        self._trace.header |= {column: tf.cast(tf.reshape(value, []), tf.int64) for column, value in values.items()}

    # How it leaves the step.

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
        assert self._trace is not None
        is_eager = self._trace.graph is None
        tensors, matrix = self.take()
        if is_eager:
            self._eager = (tensors, matrix)
        else:
            with tf.name_scope("precscope"):
                self._buffer(tensors, matrix.shape).assign(matrix)

    def _matrix(self, trace: _Trace) -> Any:
        header = header_row(trace.header | {Header.STAMP: self._stamp.read_value()})
        if not trace.parts:
            return header
        rows = tf.concat([_merged_rows(trace), _lost_updates(trace)], 1)
        return tf.concat([header, rows], 0)

    def _buffer(self, tensors: tuple[TracedTensor, ...], shape: Any) -> Any:
        for known, buffer in self._buffers:
            if [t.key for t in known] == [t.key for t in tensors]:
                return buffer
        buffer = plain_variable(np.zeros(shape.as_list(), np.int64), "precscope_buffer", self.device)
        self._buffers.append((tensors, buffer))
        return buffer

    # Around the step's run.

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
            if matrix[0, Header.STAMP] == self._samples:
                return reading_of(tensors, matrix)
        return None


def _merged_rows(trace: _Trace) -> Any:
    """Return the finished row of every tensor, its calls merged: int64 [tensors, ROW_WIDTH]."""
    finished = finished_rows([part for key in trace.tensors for part in trace.parts[key]])
    rows = []
    for key in trace.tensors:
        calls = [finished[id(part)] for part in trace.parts[key]]
        row = calls[0]
        for other in calls[1:]:
            row = merge_rows(row, other)
        rows.append(row)
    return tf.stack(rows)


def _lost_updates(trace: _Trace) -> Any:
    """Return what became of every weight, 0 for tensors that are none: int64 [tensors, UPDATE_COLUMNS]."""
    none = tf.zeros([1, UPDATE_COLUMNS], tf.int64)
    table = tf.concat([count_lost_updates(list(trace.updates.values())), none], 0) if trace.updates else none
    positions = {key: position for position, key in enumerate(trace.updates)}
    return tf.gather(table, [positions.get(key, len(positions)) for key in trace.tensors])
