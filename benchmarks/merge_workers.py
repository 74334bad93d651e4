"""How long it takes to read the files of many workers as one run, and how much memory.

Each file is written by RunWriter; to save time, a few distinct ones are written and copied. Reading happens in a
process of its own, whose peak memory is that of all it did: open the run, read all scalars, the histograms of one
sample and those summed over all, and look for findings.

Usage: python benchmarks/merge_workers.py [--workers 64] [--tensors 1000] [--samples 1000] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table

from precscope.records import SCALAR_DTYPE, LayerRecord, RunRecord, SampleRecord, TensorRecord
from precscope.replica_records import ReplicaRecord
from precscope.rundir import worker_file
from precscope.statistics import HISTOGRAM_BINS
from precscope.writer import RunWriter

KINDS = ("activation", "gradient", "weight", "weight_gradient")
DISTINCT_FILES, DISTINCT_SAMPLES = 4, 16


def make_sample(tensors, seed):
    """Return scalars and histograms of tensors of 4,096 values that are all finite."""
    random = np.random.default_rng(seed)
    scalars = np.zeros(tensors, SCALAR_DTYPE)
    scalars["count"] = scalars["histogram_count"] = 4096
    scalars["zeros"] = random.integers(0, 100, tensors)
    scalars["min"], scalars["max"] = -random.random(tensors), random.random(tensors)
    scalars["smallest_nonzero"], scalars["rms"] = 1e-3, random.random(tensors)
    histograms = np.zeros((tensors, HISTOGRAM_BINS), np.uint64)
    histograms[:, 20:40] = random.poisson(200, (tensors, 20))
    return scalars, histograms


def write_worker(path, worker, arguments):
    """Write one worker's file: a model of some layers, sampled every 100 steps."""
    model = {"workers": arguments.workers, "replicas": arguments.workers, "loss_scaling": "dynamic"}
    record = RunRecord("benchmark", "running", None, time.time(), None, {}, model, {}, {})
    writer = RunWriter.create(path, record, worker=worker)
    names = [f"block_{number}/dense" for number in range(-(-arguments.tensors // len(KINDS)))]
    half = "float16"
    writer.add_layers([LayerRecord(name, order, "Dense", name, half, half, half) for order, name in enumerate(names)])
    pairs = [(name, kind) for name in names for kind in KINDS][: arguments.tensors]
    writer.add_tensors([TensorRecord(index, *pair, "0", half, None) for index, pair in enumerate(pairs)])
    writer.add_replicas([ReplicaRecord(worker, worker, "/device:GPU:0")])
    arrays = [make_sample(arguments.tensors, 100 * worker + seed) for seed in range(DISTINCT_SAMPLES)]
    for number in range(arguments.samples):
        step = 100 * number
        sample = SampleRecord(number, step, time.time(), 0.5, 2.0**15, True, step + 1, 40_000_000)
        writer.add_sample(sample, *arrays[number % len(arrays)])
    writer.close("finished")


def write_run(path, arguments):
    distinct = min(DISTINCT_FILES, arguments.workers)
    for worker in track(range(distinct), "writing", transient=True):
        write_worker(path, worker, arguments)
    for worker in track(range(distinct, arguments.workers), "copying", transient=True):
        file = worker_file(path, worker)
        shutil.copyfile(worker_file(path, worker % distinct), file)
        with sqlite3.connect(file) as database:
            database.execute("UPDATE replicas SET number = ?, worker = ?", (worker, worker))


def read_run(path):
    """Read everything and print how long each part took, and the peak of memory."""
    from precscope.advice.evidence import Evidence
    from precscope.advice.rules import RULES
    from precscope.reader import open_run

    times, start = {}, (time.perf_counter(), time.process_time())

    def took(name):
        nonlocal start
        now = (time.perf_counter(), time.process_time())
        times[name], start = [now[0] - start[0], now[1] - start[1]], now

    run = open_run(path)
    took("open")
    counted = int(run.scalars["count"].sum())
    took("scalars of all samples")
    run.histograms(len(run.samples) // 2)
    took("histograms of one sample")
    totals = int(run.total_histograms().sum())
    took("histograms summed over all")
    evidence = Evidence(run)
    findings = [finding.id for rule in RULES for finding in rule(evidence)]
    took("findings")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sizes = [len(run.samples), len(run.tensors), len(run.replicas)]
    print(json.dumps([times, peak, counted, totals, sizes, findings]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--tensors", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument(
        "--folder", type=Path, help="where to write, on a disk with room; by default a temporary folder"
    )
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read is not None:
        read_run(arguments.read)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "run"
        write_run(path, arguments)
        size = sum(file.stat().st_size for file in path.iterdir())
        command = [sys.executable, __file__, "--read", str(path)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    times, peak, counted, totals, sizes, _ = json.loads(output)
    assert sizes == [arguments.samples, arguments.tensors, arguments.workers], sizes
    assert counted == 4096 * arguments.workers * arguments.tensors * arguments.samples, "not every sample was counted"
    assert totals > 0
    table = Table(title=f"{arguments.workers} workers, {arguments.tensors} tensors, {arguments.samples} samples")
    table.add_column("part")
    table.add_column("seconds", justify="right")
    table.add_column("of the processor", justify="right")
    whole = [sum(column) for column in zip(*times.values(), strict=True)]
    for name, seconds in (times | {"all": whole}).items():
        table.add_row(name, *(f"{value:.1f}" for value in seconds))
    console = Console()
    console.print(table)
    console.print(
        f"{size / 2**30:.1f} GiB on disk, {peak / 2**20:.0f} MiB of memory at the peak; "
        f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} CPU cores, "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, NumPy {np.__version__}"
    )


if __name__ == "__main__":
    sys.exit(main())
