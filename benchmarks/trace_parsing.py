"""What reading a profiler trace of a million events costs: time and peak memory, each case in a process of its own.

    python benchmarks/trace_parsing.py                   # a million events
    python benchmarks/trace_parsing.py --events 100000

The traces are the two real ones of the tests with their events repeated until there are enough: on the GPU's streams,
or on the host's threads of a trace without its GPU (which is how a CPU trace is read). With --compare TensorFlow's own
parser reads the first of them too. The target is under 20 s and under 2 GB on two CPU cores, attribution included.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from precscope.probes.op_time import op_records, read_trace
from precscope.probes.xplane_schema import XEvent, XLine, XPlane, XSpace

TARGET_S, TARGET_MB = 20.0, 2000.0
TRACES = Path(__file__).parent.parent / "tests" / "data" / "traces"
LAYERS = {name: name for name in ("conv_a", "bn_a", "relu_a", "conv_b", "gap", "fc")}
CASES = (("h100_no_xla", "/device:GPU"), ("h100_xla", "/device:GPU"), ("h100_no_xla", "/host:CPU"))


def main() -> int:
    arguments = parse()
    if arguments.read:
        return read(arguments.read, arguments.with_tensorflow)
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?")
    print(f"{model.partition(': ')[2]}, {os.cpu_count()} cores, Python {platform.python_version()}", flush=True)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name, plane in CASES:
            path = Path(folder) / f"{name}.xplane.pb"
            path.write_bytes(enlarge((TRACES / path.name).read_bytes(), plane, arguments.events))
            print(f"{name} {plane}, {path.stat().st_size / 1e6:.0f} MB:", end=" ", flush=True)
            results.append(run(path))
            if arguments.compare and len(results) == 1:
                print("    TensorFlow's parser:", end=" ", flush=True)
                run(path, "--with-tensorflow")
    met = all(time_s < TARGET_S and peak_mb < TARGET_MB for time_s, peak_mb in results)
    print(f"target under {TARGET_S:.0f} s and {TARGET_MB:.0f} MB: {'met' if met else 'NOT met'}")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--compare", action="store_true", help="TensorFlow's own parser too")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--with-tensorflow", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def run(path: Path, *options: str) -> tuple[float, float]:
    """Read a trace in a fresh process; return seconds of wall-clock time and MB."""
    command = [sys.executable, __file__, "--read", str(path), *options]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    count, time_s, cpu_s, peak_mb = map(float, output.split()[-4:])
    print(f"{count:.0f} ops in {time_s:.1f} s ({cpu_s:.1f} s of CPU), peak {peak_mb:.0f} MB", flush=True)
    return time_s, peak_mb


def read(path: Path, with_tensorflow: bool) -> int:
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    count = sum_with_tensorflow(path) if with_tensorflow else sum_with_precscope(path)
    time_s, cpu_s = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
    # Not getrusage: its peak outlives exec and would be the parent's, which made the trace.
    peak_kb = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(count, time_s, cpu_s, int(peak_kb[0]) * 1024 / 1e6)
    return 0


def sum_with_precscope(path: Path) -> int:
    return sum(record.count for record in op_records(read_trace(path), LAYERS))


def sum_with_tensorflow(path: Path) -> int:
    """Sum durations by kernel and op with TensorFlow's generated module: the least that any reader has to do."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    totals: dict[Any, int] = {}
    count = 0
    for plane in xplane_pb2.XSpace.FromString(path.read_bytes()).planes:
        wanted = {key for key, entry in plane.stat_metadata.items() if entry.name in ("tf_op", "hlo_op", "program_id")}
        for event in (event for line in plane.lines for event in line.events if plane.name.startswith("/device:GPU")):
            stats = [(stat.metadata_id, stat.ref_value) for stat in event.stats if stat.metadata_id in wanted]
            key = (event.metadata_id, *stats)
            totals[key] = totals.get(key, 0) + event.duration_ps
            count += 1
    return count


def enlarge(data: bytes, plane_name: str, events: int) -> bytes:
    """Return a trace whose planes of this name hold at least `events` events: those they have, again and again."""
    planes = [XPlane.FromString(plane) for plane in XSpace.FromString(data).planes]
    kept = [plane for plane in planes if plane.name.startswith((plane_name, "/host:metadata"))]
    lines = [[XLine.FromString(line) for line in plane.lines] for plane in kept]
    count = sum(len(line.events) for found in lines for line in found)
    for plane, found in zip(kept, lines, strict=True):
        del plane.lines[:]
        plane.lines.extend(repeat(line, -(-events // count)).SerializeToString() for line in found)
    enlarged: bytes = XSpace(planes=[plane.SerializeToString() for plane in kept]).SerializeToString()
    return enlarged


def repeat(line: Any, times: int) -> Any:
    """Return the line with its events `times` times, one round after the other."""
    events = [XEvent.FromString(event) for event in line.events]
    span_ps = max((event.offset_ps + event.duration_ps for event in events), default=0)
    del line.events[:]
    for _ in range(times):
        line.events.extend([event.SerializeToString() for event in events])
        for event in events:
            event.offset_ps += span_ps
    return line


if __name__ == "__main__":
    sys.exit(main())
