"""What the device sampler costs: CPU time of its thread, as a share of one core, and the time of each NVML question.

    python benchmarks/device_sampler.py                 # the GPUs of this machine, or the fake NVML where it has none
    python benchmarks/device_sampler.py --fake 8        # the fake NVML with 8 GPUs

It needs precscope importable (installed, or PYTHONPATH=.), nvidia-ml-py, and for the fake a C compiler; no TensorFlow.
With --seconds at its default it ends in about 12 s. The target is under 0.5 % of one core at 10 Hz.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precscope.probes.device_sampler import DeviceSampler
from precscope.probes.gpus import describe_gpus
from precscope.probes.nvml import Nvml, open_nvml

if TYPE_CHECKING:
    import threading

TARGET_PERCENT = 0.5
FAKE = "PRECSCOPE_BENCHMARK_FAKE"
BUILD = Path(__file__).parent.parent / "tests" / "nvml_fake" / "build.py"
QUESTIONS: tuple[tuple[Any, ...], ...] = (
    ("nvmlDeviceGetMemoryInfo", 0x02000028),
    ("nvmlDeviceGetComputeRunningProcesses",),
    ("nvmlDeviceGetGraphicsRunningProcesses",),
    ("nvmlDeviceGetUtilizationRates",),
    ("nvmlDeviceGetPowerUsage",),
    ("nvmlDeviceGetTemperatureV", 0),
    ("nvmlDeviceGetTemperature", 0),
    ("nvmlDeviceGetClockInfo", 1),
    ("nvmlDeviceGetClockInfo", 2),
    ("nvmlDeviceGetCurrentClocksEventReasons",),
)


def main() -> int:
    arguments = parse()
    if FAKE not in os.environ and (arguments.fake or not describe_gpus()):
        return run_with_fake(arguments.fake or 1)
    print_row("machine", f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print_devices()
    share = measure_thread(arguments.seconds, arguments.interval_s)
    with open_nvml(print) as nvml:
        if nvml is not None:
            measure_questions(nvml)
    print_row("target", f"under {TARGET_PERCENT} % of one core: {'met' if share < TARGET_PERCENT else 'NOT met'}")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to sample (10)")
    parser.add_argument("--interval-s", type=float, default=0.1, help="time between two looks (0.1)")
    parser.add_argument("--fake", type=int, metavar="GPUS", help="use the fake NVML with so many GPUs")
    return parser.parse_args()


def run_with_fake(gpus: int) -> int:
    """Run this script again where NVML is the fake one: the loader looks for libraries when a program starts."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, BUILD, folder], check=True)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
        environment = {**clean, FAKE: "1", "NVML_FAKE_GPUS": str(gpus), "LD_LIBRARY_PATH": folder}
        return subprocess.run([sys.executable, *sys.argv], env=environment).returncode


def print_devices() -> None:
    infos = describe_gpus(print)
    names = ", ".join(sorted({f"{info.name} ({info.kind})" for info in infos}))
    driver = "the fake of tests/nvml_fake" if FAKE in os.environ else infos[0].driver_version if infos else "none"
    print_row("devices", f"{len(infos)} x {names}; driver: {driver}")


def measure_thread(seconds: float, interval_s: float) -> float:
    """Sample for some time beside a main thread that sleeps; return the thread's share of one core in percent."""
    marks: list[tuple[int, int]] = []

    def wait(stop: threading.Event, timeout_s: float) -> bool:
        marks.append((time.thread_time_ns(), time.perf_counter_ns()))
        return stop.wait(timeout_s)

    samples = 0

    def count(batch: tuple[Any, ...]) -> None:
        nonlocal samples
        samples += len(batch)

    sampler = DeviceSampler(count, interval_s, notice=print, wait=wait)
    process_before_ns, wall_before_ns = time.process_time_ns(), time.perf_counter_ns()
    sampler.start()
    time.sleep(seconds)
    sampler.stop()
    process_ns, wall_ns = time.process_time_ns() - process_before_ns, time.perf_counter_ns() - wall_before_ns
    looks_us = [(after[0] - before[0]) / 1e3 for before, after in itertools.pairwise(marks)]
    steady_ns = marks[-1][1] - marks[0][1]
    share = 100 * (marks[-1][0] - marks[0][0]) / steady_ns
    print_row("looks", f"{sampler.reads} in {wall_ns / 1e9:.1f} s, every {interval_s:g} s; {samples} samples")
    print_row("CPU time to open, first look", f"{marks[0][0] / 1e6:.1f} ms, once")
    print_row("CPU time of a look", f"median {statistics.median(looks_us):.0f} us, most {max(looks_us):.0f} us")
    print_row("the thread's share of one core", f"{share:.3f} %  (thread_time, opening not counted)")
    print_row("the process' share of one core", f"{100 * process_ns / wall_ns:.3f} %  (process_time, all counted)")
    return share


def measure_questions(nvml: Nvml, times: int = 100) -> None:
    """Print the time of each question to the first GPU, which is where a dear one shows."""
    handle = nvml.value("nvmlDeviceGetHandleByIndex", 0)
    if handle is None:
        return
    for function, *rest in QUESTIONS:
        took_us = []
        for _ in range(times):
            began_ns = time.perf_counter_ns()
            answer = nvml.ask((function, handle, *rest))
            took_us.append((time.perf_counter_ns() - began_ns) / 1e3)
        label = f"{function.removeprefix('nvmlDeviceGet')}({', '.join(f'{value:#x}' for value in rest)})"
        print_row(
            label, f"median {statistics.median(took_us):.1f} us, most {max(took_us):.0f} us  {answer.reason or ''}"
        )


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def print_row(label: str, value: str) -> None:
    print(f"{label:<38} {value}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
