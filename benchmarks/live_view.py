"""What the live view costs while a large run grows: CPU time of `precscope live` as a share of one core.

The real command runs in a pseudo-terminal; a writer adds samples, looks at the optimizer and device samples to the run
meanwhile, as a training does. CPU time is the view's own `time.process_time`, start-up and first frame not counted.

Usage: python -m benchmarks.live_view [--layers 1000] [--rate 1.0] [--seconds 30] [--columns 120] [--rows 40]
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import pty
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path

import psutil
from rich.console import Console

from benchmarks.report import DISTINCT_SAMPLES, KINDS, make_sample
from precscope.device_records import DeviceInfo, DeviceSample
from precscope.records import (
    CostRecord,
    LayerRecord,
    LossScaleRecord,
    RunRecord,
    SampleRecord,
    StepTimeRecord,
    TensorRecord,
)
from precscope.writer import RunWriter

SAMPLES_BEFORE = 200
STEPS_A_SAMPLE = 50
TARGET = 0.02
WARM_UP_S = 6.0

VIEW = """
import json, signal, sys, time
def tell(number, frame):
    with open(sys.argv[2], "a") as file:
        file.write(json.dumps([time.process_time(), time.monotonic()]) + "\\n")
signal.signal(signal.SIGUSR1, tell)
from precscope.cli import main
sys.exit(main(["live", sys.argv[1]]))
"""


class Training:
    """Writes a run as a training with so many layers does."""

    def __init__(self, run_dir, layers):
        record = RunRecord(
            name="run",
            status="running",
            error=None,
            started_unix_s=time.time(),
            ended_unix_s=None,
            options={"overhead_budget": 0.02},
            model={"name": "tower", "layers": layers, "dtype_policy": "mixed_float16", "loss_scaling": "dynamic"},
            software={},
            hardware={},
        )
        self.writer = RunWriter.create(run_dir, record)
        names = [f"stage{number // 10}/block{number % 10}/dense" for number in range(layers)]
        types = ("mixed_float16", "float16", "float32", 1000)
        self.writer.add_layers(
            LayerRecord(name, order, "Dense", name, *types, tuple(names[max(order - 1, 0) : order]))
            for order, name in enumerate(names)
        )
        keys = [(name, kind) for name in names for kind in KINDS]
        self.writer.add_tensors([TensorRecord(i, *key, "0", "float16", None) for i, key in enumerate(keys)])
        self.writer.add_devices([DeviceInfo("gpu:0", "gpu", "GPU", 80 * 2**30)])
        self.arrays = [make_sample(len(keys), seed) for seed in range(DISTINCT_SAMPLES)]
        self.samples = 0

    def add_sample(self):
        """Add a sample and what is written with it."""
        step = STEPS_A_SAMPLE * self.samples
        sample = SampleRecord(
            index=0,
            step=step,
            time_unix_s=time.time(),
            loss=2.0 / (1 + self.samples),
            loss_scale=32768.0,
            applied=True,
            iterations=step + 1,
            step_time_ns=40_000_000,
        )
        costs = [CostRecord("step", self.samples, self.samples * 10**7)]
        arrays = self.arrays[self.samples % len(self.arrays)]
        self.writer.add_sample(sample, *arrays, costs=costs)
        self.writer.add_step_time(StepTimeRecord(max(step - STEPS_A_SAMPLE, 0), STEPS_A_SAMPLE, 40_000_000, 128))
        self.add_look()
        self.samples += 1

    def add_look(self):
        """Add a look at the optimizer."""
        step = STEPS_A_SAMPLE * self.samples + 1
        self.writer.add_loss_scale(LossScaleRecord(step, 32768.0, step, 0, step % 2000))

    def add_device_samples(self):
        """Add what a second of looks at a GPU gives."""
        now = time.time()
        states = [
            DeviceSample("gpu:0", now - 1 + look / 10, 40 * 2**30, 80 * 2**30, None, 97, 60, 310_000 + look, 61)
            for look in range(10)
        ]
        self.writer.add_device_samples(states)

    def go_on(self, rate, is_over):
        """Add `rate` samples a second, and what comes in between, until told to end."""
        start, looks = time.monotonic(), 0
        while not is_over.wait(0.05):
            passed = time.monotonic() - start
            while self.samples - SAMPLES_BEFORE < passed * rate:
                self.add_sample()
            if passed > looks:
                looks += 1
                self.add_look()
                self.add_device_samples()


class View:
    """`precscope live` in a pseudo-terminal of its own."""

    def __init__(self, run_dir, folder, columns, rows):
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.report = folder / "cpu.jsonl"
        self.report.touch()
        environment = {**os.environ, "TERM": "xterm-256color"}
        environment.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", VIEW, str(run_dir), str(self.report)],
            stdin=slave,
            stdout=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.bytes = 0
        self.reader = threading.Thread(target=self._read, args=(master,), daemon=True)
        self.reader.start()

    def _read(self, master):
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:
                return
            self.bytes += len(data)

    def cpu_and_clock(self):
        """Return the view's CPU time and the time at which it told."""
        before = len(self.report.read_text().splitlines())
        self.process.send_signal(signal.SIGUSR1)
        while len(lines := self.report.read_text().splitlines()) == before:
            time.sleep(0.01)
        return json.loads(lines[-1])

    def end(self):
        """End the view as its user does."""
        self.process.terminate()
        self.process.wait(10)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=1.0, help="samples a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--columns", type=int, default=120)
    parser.add_argument("--rows", type=int, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        training = Training(folder / "run", arguments.layers)
        for _ in range(SAMPLES_BEFORE):
            training.add_sample()
        is_over = threading.Event()
        writer = threading.Thread(target=training.go_on, args=(arguments.rate, is_over))
        writer.start()
        view = View(folder / "run", folder, arguments.columns, arguments.rows)
        time.sleep(WARM_UP_S)
        first, size = view.cpu_and_clock(), view.bytes
        time.sleep(arguments.seconds)
        last, size = view.cpu_and_clock(), view.bytes - size
        memory_mb = psutil.Process(view.process.pid).memory_info().rss / 1e6
        view.end()
        is_over.set()
        writer.join()
        samples = training.samples
        training.writer.close("finished")
    cpu_s, wall_s = last[0] - first[0], last[1] - first[1]
    console = Console(highlight=False)
    console.print(
        f"{arguments.layers:,} layers, {arguments.rate:g} samples a second, {SAMPLES_BEFORE} to {samples} samples, "
        f"{arguments.columns}x{arguments.rows}"
    )
    share = cpu_s / wall_s
    console.print(f"CPU time / time: {cpu_s:.3f} s / {wall_s:.1f} s = {share:.2%} of one core (target: {TARGET:.0%})")
    console.print(f"{size / wall_s / 1e3:.1f} kB a second written to the terminal")
    console.print(f"until then: {first[0]:.2f} s of CPU time to start and to catch up; {memory_mb:.0f} MB resident")
    console.print(
        f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} CPU cores, load {psutil.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}"
    )
    return 0 if share <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
