"""Reads the XPlane file that TensorFlow's profiler writes into plain dataclasses.

An XPlane file is an XSpace protocol buffer: planes (one a device, one for the host) hold lines (GPU streams, threads),
lines hold events with a duration and stats. Without XLA the stat `tf_op` names the op. Under XLA `hlo_op` names the HLO
instruction, and the plane "/host:metadata" holds the program, whose metadata leads back to TensorFlow's op names.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from precscope.errors import TraceError
from precscope.probes.hlo import HloModule, parse_hlo
from precscope.probes.xplane_schema import XEvent, XLine, XPlane, XSpace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["Trace", "TraceOp", "read_trace"]

_GPU_PLANE: Final = "/device:GPU:"
_HOST_PLANE: Final = "/host:CPU"
_HOST: Final = "host"
_METADATA_PLANE: Final = "/host:metadata"
#: Planes' names come first in a trace that TensorFlow wrote, so one of these stands near its beginning.
_PLANE_MARKS: Final = (b"/host:", b"/device:", b"Task Environment")


@dataclass(frozen=True)
class TraceOp:
    """All runs of one kernel for one op, as the trace names them; "" where it names nothing.

    Attributes:
        device: "gpu:0", "gpu:1", ..., or "host".
        kernel: The GPU kernel or copy; on a CPU XLA's instruction, or "".
        tf_op: TensorFlow's op, "scope/name:Type".
        hlo_op: XLA's instruction.
        program: XLA's program id, a key of `Trace.modules`; 0 without XLA.
        input_pipeline: Whether it ran on a thread of tf.data.
        time_ps: Time of all runs. Of nested events each counts only what is its own.
        count: Number of runs.
    """

    device: str
    kernel: str
    tf_op: str
    hlo_op: str
    program: int
    input_pipeline: bool
    time_ps: int
    count: int


@dataclass(frozen=True)
class Trace:
    """What a trace says about ops.

    Attributes:
        ops: Time by kernel and op; of the GPUs where the trace has any, else of the CPU.
        modules: XLA programs by program id.
        devices: Model name by device ("gpu:0": "NVIDIA H100 80GB HBM3"), where the trace has it.
        warnings: What the profiler itself complained about.
    """

    ops: tuple[TraceOp, ...]
    modules: Mapping[int, HloModule] = field(default_factory=dict)
    devices: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class _OpKey(NamedTuple):
    device: str
    kernel: str
    tf_op: str
    hlo_op: str
    program: int
    input_pipeline: bool


def read_trace(source: str | Path | bytes) -> Trace:
    """Read a trace from a `.xplane.pb` file or from its bytes.

    Raises:
        TraceError: The file cannot be read, is truncated, is no such trace, was written in a newer format, or holds no
            op.
    """
    name = "The trace" if isinstance(source, bytes) else f"The trace {source}"
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise TraceError(f"{name} cannot be read: {error.strerror}. Give the path of a .xplane.pb file.") from error
    try:
        space = XSpace.FromString(data)
        planes = [XPlane.FromString(plane) for plane in space.planes]
        ops = _read_ops(planes, name)
        modules = _read_modules(planes, {op.program for op in ops})
    except DecodeError as error:
        raise TraceError(_why_undecodable(name, data)) from error
    if not planes:
        raise TraceError(_why_undecodable(name, data))
    warnings = (*space.errors, *space.warnings)
    if not ops:
        raise TraceError(_why_empty(name, warnings))
    devices = {_device(plane.name): model for plane in planes if (model := _device_model(plane))}
    return Trace(ops, modules, devices, warnings)


def _why_undecodable(name: str, data: bytes) -> str:
    if not data or any(mark in data[:64] for mark in _PLANE_MARKS):
        return (
            f"{name} is truncated: it ends in the middle of a message after {len(data)} bytes. The process that wrote "
            "it was killed or the disk is full; record it again."
        )
    return (
        f"{name} is not a TensorFlow profiler trace: expected an XSpace protocol buffer (a .xplane.pb file, as "
        f"tf.profiler writes under plugins/profile), got {len(data)} bytes that begin with {data[:16]!r}. Give the "
        "path of such a file."
    )


def _why_empty(name: str, warnings: tuple[str, ...]) -> str:
    said = f" The profiler said: {'; '.join(warnings)}." if warnings else " The profiler reported no error."
    return (
        f"{name} holds no ops: expected GPU kernels, or CPU ops that ran in a tf.function.{said} Record a window that "
        "holds whole train steps of a model that does not run eagerly."
    )


def _read_ops(planes: Iterable[Any], name: str) -> tuple[TraceOp, ...]:
    gpus = [plane for plane in planes if plane.name.startswith(_GPU_PLANE)]
    totals: dict[_OpKey, list[int]] = defaultdict(lambda: [0, 0])
    for plane in gpus or [plane for plane in planes if plane.name == _HOST_PLANE]:
        reader = _GpuPlane(plane) if gpus else _HostPlane(plane)
        for data in plane.lines:
            line = XLine.FromString(data)
            _check_format(line, name)
            for key, time_ps, count in reader.read(line):
                totals[key][0] += time_ps
                totals[key][1] += count
    return tuple(TraceOp(*key, time_ps, count) for key, (time_ps, count) in totals.items())


def _check_format(line: Any, name: str) -> None:
    """Raise where the line, its first event or that one's stats have fields that this reader does not know."""
    events = [XEvent.FromString(data) for data in line.events[:1]]
    for message in (line, *events, *(stat for event in events for stat in event.stats)):
        if unknown := sorted({item.field_number for item in UnknownFieldSet(message)}):
            raise TraceError(
                f"{name} was written in a newer format: {message.DESCRIPTOR.name} has field {unknown[0]}, expected "
                "the fields of TensorFlow 2.21. Times could be misread, so nothing was read; update PrecScope."
            )


class _Plane:
    """A plane's tables: the names of its events, and those of its stats, which are also the strings that stats hold."""

    def __init__(self, plane: Any) -> None:
        self.name = plane.name
        self.events = {entry.key: entry.value for entry in plane.event_metadata}
        self.stats = {entry.key: entry.value.name for entry in plane.stat_metadata}
        self.wanted = {key: name for key, name in self.stats.items() if name in ("tf_op", "hlo_op", "program_id")}

    def read(self, line: Any) -> Iterator[tuple[_OpKey, int, int]]:
        """Yield key, time in ps and number of runs of the ops on one line."""
        raise NotImplementedError

    def values(self, stats: Iterable[tuple[int, int | str]]) -> dict[str, Any]:
        """Return wanted stats by name; what refers to a string as that string."""
        found = {self.wanted[key]: value for key, value in stats}
        return {
            name: value if isinstance(value, str) or name == "program_id" else self.stats.get(value, "")
            for name, value in found.items()
        }


class _GpuPlane(_Plane):
    """Events on GPU streams: kernels and copies."""

    def read(self, line: Any) -> Iterator[tuple[_OpKey, int, int]]:
        if not line.name.startswith("Stream"):
            return  # lines that a viewer derived from the streams would count everything twice
        # The loop that runs once an event: it compares numbers and leaves names for later.
        wanted = frozenset(self.wanted)
        totals: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0, 0])
        for data in line.events:
            event = XEvent.FromString(data)
            stats = [(stat.metadata_id, _value(stat)) for stat in event.stats if stat.metadata_id in wanted]
            total = totals[event.metadata_id, *stats]
            total[0] += event.duration_ps
            total[1] += 1
        device = _device(self.name)
        for (kernel, *stats), (time_ps, count) in totals.items():
            yield self._key(device, kernel, self.values(stats)), time_ps, count

    def _key(self, device: str, kernel: int, values: dict[str, Any]) -> _OpKey:
        name = self.events[kernel].name if kernel in self.events else ""
        return _OpKey(
            device, name, values.get("tf_op", ""), values.get("hlo_op", ""), values.get("program_id", 0), False
        )


class _HostPlane(_Plane):
    """Events on CPU threads: ops, and instructions of XLA programs, among much else."""

    def read(self, line: Any) -> Iterator[tuple[_OpKey, int, int]]:
        open_events: list[list[Any]] = []  # key, end, own time so far
        for start_ps, negative_ps, key in sorted(self._ops(line)):
            while open_events and open_events[-1][1] <= start_ps:
                yield _closed(open_events.pop())
            if open_events:  # a loop and what it runs: time counts where it is spent
                open_events[-1][2] += negative_ps
            open_events.append([key, start_ps - negative_ps, -negative_ps])
        yield from map(_closed, open_events)

    def _ops(self, line: Any) -> Iterator[tuple[int, int, _OpKey]]:
        """Yield start, negative duration (so that of two that begin together the outer comes first) and key."""
        input_pipeline = line.name.startswith("tf_data")
        for data in line.events:
            event = XEvent.FromString(data)
            if (key := self._key(event, input_pipeline)) is not None:
                yield event.offset_ps, -event.duration_ps, key

    def _key(self, event: Any, input_pipeline: bool) -> _OpKey | None:
        stats = [(stat.metadata_id, _value(stat)) for stat in event.stats if stat.metadata_id in self.wanted]
        values = self.values(stats)
        if "hlo_op" in values:
            hlo_op = values["hlo_op"]
            return _OpKey(_HOST, hlo_op, "", hlo_op, values.get("program_id", 0), input_pipeline)
        metadata = self.events.get(event.metadata_id)
        # An op's event is called "scope/name:Type" and displayed as "Type"; others are not.
        if metadata is None or not metadata.display_name or not metadata.name.endswith(f":{metadata.display_name}"):
            return None
        return _OpKey(_HOST, "", metadata.name, "", 0, input_pipeline)


def _closed(event: list[Any]) -> tuple[_OpKey, int, int]:
    key, _, own_ps = event
    return key, max(own_ps, 0), 1


def _device(plane_name: str) -> str:
    return plane_name.removeprefix("/device:").lower()


def _value(stat: Any) -> int | str:
    return stat.ref_value or stat.str_value or stat.int64_value or stat.uint64_value


def _read_modules(planes: Iterable[Any], programs: set[int]) -> dict[int, HloModule]:
    """Return the XLA programs with these ids, as far as the trace holds them."""
    return {
        entry.key: parse_hlo(stat.bytes_value)
        for plane in planes
        if plane.name == _METADATA_PLANE
        for entry in plane.event_metadata
        if entry.key in programs
        for stat in entry.value.stats
        if stat.bytes_value
    }


def _device_model(plane: Any) -> str:
    names = {entry.key: entry.value.name for entry in plane.stat_metadata}
    return next((stat.str_value for stat in plane.stats if names.get(stat.metadata_id) == "gpu_device_name"), "")
