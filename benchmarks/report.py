"""How long the command line takes: `precscope --help`, and `precscope report` of a large run.

Usage: python benchmarks/report.py [--layers 200] [--samples 1000] [--repeats 9]

Whole processes are timed, start of the interpreter included; the run lies in the file cache, as it does after training.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import rich.console
import rich.progress
from rich.table import Table

from precscope.records import (
    SCALAR_DTYPE,
    LayerRecord,
    LossScaleRecord,
    RunRecord,
    SampleRecord,
    TensorRecord,
)
from precscope.statistics import HISTOGRAM_BINS, describe
from precscope.writer import RunWriter

KINDS = ("activation", "gradient", "weight", "weight_gradient")
DISTINCT_SAMPLES = 16  # written in turn
ELEMENTS = 500


def make_sample(tensors, seed):
    """Return the arrays of a sample of normally distributed float16 tensors at various scales."""
    random = np.random.default_rng(seed)
    scalars, histograms = np.zeros(tensors, SCALAR_DTYPE), np.zeros((tensors, HISTOGRAM_BINS), np.uint64)
    for row in range(tensors):
        values = random.standard_normal(ELEMENTS) * 2.0 ** random.uniform(-18, 8)
        known = describe(values.astype(np.float16))
        for name in SCALAR_DTYPE.names:
            scalars[name][row] = getattr(known, name, 0) or 0
        histograms[row] = known.histogram
    return scalars, histograms


def write_run(folder, layers, samples):
    names = [f"stage{number // 10}/block{number % 10}/dense" for number in range(layers)]
    keys = [(name, kind) for name in names for kind in KINDS]
    model = {"name": "tower", "layers": layers, "dtype_policy": "mixed_float16", "loss_scaling": "dynamic"}
    writer = RunWriter.create(folder / "run", RunRecord("run", "running", None, time.time(), None, {}, model, {}, {}))
    writer.add_layers(
        LayerRecord(
            name, order, "Dense", name, "mixed_float16", "float16", "float32", 1000, tuple(names[order - 1 : order])
        )
        for order, name in enumerate(names)
    )
    writer.add_tensors([TensorRecord(i, name, kind, "0", "float16", None) for i, (name, kind) in enumerate(keys)])
    arrays = [make_sample(len(keys), seed) for seed in range(DISTINCT_SAMPLES)]
    for index in rich.progress.track(range(samples), "Writing the run", transient=True):
        sample = SampleRecord(
            index=index,
            step=10 * index,
            time_unix_s=time.time(),
            loss=1 / (1 + index),
            loss_scale=2.0**15,
            applied=True,
            iterations=10 * index,
            step_time_ns=40_000_000,
        )
        writer.add_sample(sample, *arrays[index % len(arrays)])
        writer.add_loss_scale(LossScaleRecord(10 * index, 2.0**15, 10 * index, 0, None))
    writer.close("finished")
    return folder / "run"


def median_s(command, repeats):
    """Return the median and the extremes of a process' wall-clock time in seconds, after one run to warm the caches."""
    environment = os.environ | {"COLUMNS": "120"}
    times = []
    for _ in range(repeats + 1):
        before = time.perf_counter()
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - before)
    return statistics.median(times[1:]), min(times[1:]), max(times[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    precscope = [str(Path(sys.executable).with_name("precscope"))]
    table = Table(title=f"{arguments.layers} layers, {arguments.samples} samples, median of {arguments.repeats}")
    for heading in ("command", "median", "fastest", "slowest", "target"):
        table.add_column(heading, justify="left" if heading == "command" else "right", no_wrap=True)
    with tempfile.TemporaryDirectory() as folder:
        run = str(write_run(Path(folder), arguments.layers, arguments.samples))
        commands = {
            "precscope --help": (["--help"], "0.3 s"),
            "precscope report RUN": (["report", run], "2 s"),
            "precscope report RUN --all": (["report", run, "--all"], ""),
        }
        for name, (words, target) in commands.items():
            times = median_s([*precscope, *words], arguments.repeats)
            table.add_row(name, *(f"{seconds:.2f} s" for seconds in times), target)
    console = rich.console.Console()
    console.print(table)
    console.print(
        f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} CPU cores; "
        f"Python {platform.python_version()}, NumPy {np.__version__}"
    )


if __name__ == "__main__":
    sys.exit(main())
