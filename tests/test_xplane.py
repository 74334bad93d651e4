"""Reading traces: real ones, hand-made ones and damaged ones."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from precscope.errors import PrecScopeError, TraceError
from precscope.probes import xplane_schema
from precscope.probes.xplane import read_trace
from precscope.probes.xplane_schema import SCHEMA, XEvent, XLine, XPlane, XSpace

TRACES = Path(__file__).parent / "data" / "traces"


def make_line(name: str, *events: tuple[int, int, int], **stat: int) -> bytes:
    """Return a line with events of (metadata id, offset, duration), each with the given stats of id 1."""
    made = []
    for metadata_id, offset_ps, duration_ps in events:
        event = XEvent(metadata_id=metadata_id, offset_ps=offset_ps, duration_ps=duration_ps)
        if stat:
            event.stats.add(metadata_id=1, **stat)
        made.append(event.SerializeToString())
    line: bytes = XLine(name=name, events=made).SerializeToString()
    return line


def make_plane(
    name: str, *lines: bytes, events: dict[int, str] | None = None, stats: dict[int, str] | None = None
) -> bytes:
    plane = XPlane(name=name, lines=lines)
    for key, text in (events or {}).items():
        plane.event_metadata.add(key=key, value={"name": text, "display_name": text.rpartition(":")[2]})
    for key, text in (stats or {}).items():
        plane.stat_metadata.add(key=key, value={"name": text})
    data: bytes = plane.SerializeToString()
    return data


def make_trace(*planes: bytes, **fields: Any) -> bytes:
    data: bytes = XSpace(planes=planes, **fields).SerializeToString()
    return data


def test_the_schema_is_tensorflows() -> None:
    xplane = pytest.importorskip("tensorflow.tsl.profiler.protobuf.xplane_pb2")
    hlo = pytest.importorskip("tensorflow.compiler.xla.service.hlo_pb2")
    instruction = hlo.HloInstructionProto.DESCRIPTOR.fields_by_name
    theirs = {name: getattr(xplane if name.startswith("X") else hlo, name, None) for name in SCHEMA}
    descriptors = {name: found.DESCRIPTOR for name, found in theirs.items() if found is not None}
    descriptors |= {"ShapeProto": instruction["shape"].message_type, "OpMetadata": instruction["metadata"].message_type}
    descriptors |= {
        f"{kind}MetadataEntry": xplane.XPlane.DESCRIPTOR.fields_by_name[f"{kind.lower()}_metadata"].message_type
        for kind in ("Event", "Stat")
    }
    assert descriptors.keys() == SCHEMA.keys()
    for message, fields in SCHEMA.items():
        for name, (number, kind) in fields.items():
            field = descriptors[message].fields_by_name[name]
            assert field.number == number, f"{message}.{name}"
            assert field.is_repeated == kind.startswith("*"), f"{message}.{name}"
            wire_types = {
                "bytes": (9, 11, 12),
                "string": (9,),
                "int32": (5, 14),
                "int64": (3,),
                "uint64": (4,),
                "double": (1,),
            }
            assert field.type in wire_types.get(kind.lstrip("*"), (11,)), f"{message}.{name}"
    for complete in ("XLine", "XEvent", "XStat"):  # a field unknown there is taken for a newer format
        assert {field.name for field in descriptors[complete].fields} == SCHEMA[complete].keys()


def test_a_real_trace_with_xla() -> None:
    trace = read_trace(TRACES / "h100_xla.xplane.pb")
    assert trace.devices == {"gpu:0": "NVIDIA H100 80GB HBM3"}
    (module,) = trace.modules.values()
    assert module.by_name["cudnn-conv-bw-input.1"].op_type == "Conv2DBackpropInput"
    # Sum of all events on the three streams, as TensorFlow's own parser gives it.
    assert sum(op.time_ps for op in trace.ops) == 2_086_623_000
    assert sum(op.count for op in trace.ops) == 216


def test_bytes_and_path_give_the_same() -> None:
    path = TRACES / "h100_no_xla.xplane.pb"
    assert read_trace(path.read_bytes()) == read_trace(str(path))


def test_runs_of_one_kernel_are_summed() -> None:
    line = make_line("Stream #13(Compute)", (7, 0, 10), (7, 20, 30), (8, 60, 5), ref_value=2)
    plane = make_plane(
        "/device:GPU:1", line, line, events={7: "kernel", 8: "other"}, stats={1: "tf_op", 2: "scope/op:Type"}
    )
    ops = {op.kernel: op for op in read_trace(make_trace(plane)).ops}
    assert (ops["kernel"].time_ps, ops["kernel"].count) == (80, 4)
    assert (ops["other"].time_ps, ops["other"].count) == (10, 2)
    assert {(op.tf_op, op.device) for op in ops.values()} == {("scope/op:Type", "gpu:1")}


def test_derived_lines_do_not_count_twice() -> None:
    events = (7, 0, 10)
    lines = (make_line("Stream #13(Compute)", events), make_line("TensorFlow Ops", events), make_line("Steps", events))
    (op,) = read_trace(make_trace(make_plane("/device:GPU:0", *lines, events={7: "kernel"}))).ops
    assert (op.time_ps, op.count) == (10, 1)


def test_nested_cpu_events_count_only_what_is_their_own() -> None:
    # A loop of 100 ps that runs an op twice, 30 and 40 ps; within the second one, another op of 15 ps. In any order.
    line = make_line("tf_Compute/1", (2, 50, 40), (1, 0, 100), (3, 60, 15), (2, 10, 30), (2, 100, 7))
    plane = make_plane("/host:CPU", line, events={1: "loop:While", 2: "body/op:Mul", 3: "body/in:Add"})
    times = {op.tf_op: (op.time_ps, op.count) for op in read_trace(make_trace(plane)).ops}
    assert times == {"loop:While": (30, 1), "body/op:Mul": (62, 3), "body/in:Add": (15, 1)}


def test_a_gpu_trace_ignores_cpu_ops() -> None:
    gpu = make_plane("/device:GPU:0", make_line("Stream #1", (7, 0, 10)), events={7: "kernel"})
    host = make_plane("/host:CPU", make_line("tf_Compute/1", (1, 0, 100)), events={1: "op:Mul"})
    assert [op.device for op in read_trace(make_trace(host, gpu)).ops] == ["gpu:0"]


def test_threads_of_tf_data_are_input() -> None:
    lines = [make_line(name, (1, 0, 100)) for name in ("tf_Compute/1", "tf_data_private_threadpool/2")]
    ops = read_trace(make_trace(make_plane("/host:CPU", *lines, events={1: "op:GatherV2"}))).ops
    assert sorted(op.input_pipeline for op in ops) == [False, True]


@pytest.mark.parametrize("keep", [40, 1000, 100_000, -1], ids=str)
def test_a_truncated_trace_says_so(keep: int) -> None:
    data = (TRACES / "h100_xla.xplane.pb").read_bytes()[:keep]
    with pytest.raises(TraceError, match=f"truncated: .* after {len(data)} bytes.*record it again"):
        read_trace(data)


def test_an_empty_file_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "empty.xplane.pb"
    path.write_bytes(b"")
    with pytest.raises(TraceError, match=r"empty\.xplane\.pb is truncated.*after 0 bytes"):
        read_trace(path)


@pytest.mark.parametrize(
    "data",
    [b"\x89PNG\r\n\x1a\n" + bytes(64), b'{"displayTimeUnit": "ns"}', gzip.compress(b"{}"), b"\n\n\n\n", bytes(100)],
)
def test_a_foreign_file_says_what_it_is_not(data: bytes) -> None:
    with pytest.raises(
        TraceError, match=r"is not a TensorFlow profiler trace: expected an XSpace .*got .* bytes that begin"
    ):
        read_trace(data)


@pytest.mark.parametrize("name", ["XLine", "XEvent", "XStat"])
def test_a_newer_format_is_not_misread(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = b"\xf8\x07\x01"  # field 127, varint 1
    stat = xplane_schema._message_class("XStat")(metadata_id=1, ref_value=2).SerializeToString()
    stat += unknown if name == "XStat" else b""
    event = XEvent(metadata_id=7, duration_ps=10).SerializeToString() + b"\x22" + bytes([len(stat)]) + stat
    event += unknown if name == "XEvent" else b""
    line = XLine(name="Stream #1", events=[event]).SerializeToString() + (unknown if name == "XLine" else b"")
    with pytest.raises(TraceError, match=rf"newer format: {name} has field 127, .*update PrecScope"):
        read_trace(make_trace(make_plane("/device:GPU:0", line, events={7: "kernel"})))


def test_zero_events_say_what_the_profiler_said() -> None:
    host = make_plane("/host:CPU", make_line("python", (1, 0, 100)), events={1: "train"})
    with pytest.raises(TraceError, match=r"holds no ops: .*The profiler reported no error.*whole train steps"):
        read_trace(make_trace(host))
    with pytest.raises(TraceError, match=r"The profiler said: CUPTI_ERROR_INSUFFICIENT_PRIVILEGES"):
        read_trace(make_trace(host, errors=["CUPTI_ERROR_INSUFFICIENT_PRIVILEGES"]))


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(PrecScopeError, match=r"none\.pb cannot be read: No such file"):
        read_trace(tmp_path / "none.pb")
    with pytest.raises(PrecScopeError, match="cannot be read: Is a directory"):
        read_trace(tmp_path)
