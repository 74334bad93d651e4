"""What a sample costs on disk: arrays as two BLOBs a sample (what PrecScope does), or a row for each tensor.

Bytes are those on disk for a tensor and sample; "read" opens the run and reads every scalar and the summed histograms.

Usage: python benchmarks/run_directory.py [--layers 200] [--samples 1000]
"""

from __future__ import annotations

import argparse
import platform
import sqlite3
import sys
import tempfile
import time
import zlib
from math import erf
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table

from precscope.reader import open_run
from precscope.records import SCALAR_DTYPE, LayerRecord, RunRecord, SampleRecord, TensorRecord
from precscope.statistics import BIN_EXPONENTS, HISTOGRAM_BINS
from precscope.writer import RunWriter

KINDS = ("activation", "gradient", "weight", "weight_gradient")
DISTINCT_SAMPLES = 16  # written in turn; each is compressed by itself, so repetition saves nothing


def normal_histogram(random, size, log2_scale):
    """Return the exponent histogram of `size` normally distributed values."""
    edges = 2.0 ** (np.array([*BIN_EXPONENTS, BIN_EXPONENTS[-1] + 1]) - log2_scale)
    shares = np.diff([erf(edge / 2**0.5) for edge in edges])
    return random.poisson(shares * size).astype(np.uint64)


def make_sample(tensors, seed):
    """Return scalars and histograms of `tensors` tensors of 30 to 100 million elements at various scales."""
    random = np.random.default_rng(seed)
    scalars = np.zeros(tensors, SCALAR_DTYPE)
    for name in SCALAR_DTYPE.names:
        scalars[name] = random.integers(0, 10**6, tensors) if SCALAR_DTYPE[name].kind == "u" else random.random(tensors)
    sizes, scales = 10 ** random.uniform(1.5, 8, tensors), random.uniform(-20, 2, tensors)
    return scalars, np.array([normal_histogram(random, *pair) for pair in zip(sizes, scales, strict=True)])


def measure_blobs(folder, layers, samples, arrays):
    record = RunRecord(
        name="benchmark",
        status="running",
        error=None,
        started_unix_s=time.time(),
        ended_unix_s=None,
        options={},
        model={},
        software={},
        hardware={},
    )
    writer = RunWriter.create(folder / "run", record)
    names = [f"block_{number}/dense" for number in range(layers)]
    half = "float16"
    writer.add_layers([LayerRecord(name, order, "Dense", name, half, half, half) for order, name in enumerate(names)])
    pairs = [(name, kind) for name in names for kind in KINDS]
    writer.add_tensors([TensorRecord(index, *pair, "0", half, None) for index, pair in enumerate(pairs)])
    times = []
    for step in track(range(samples), "BLOBs", transient=True):
        sample = SampleRecord(
            index=step,
            step=step,
            time_unix_s=time.time(),
            loss=0.5,
            loss_scale=32768.0,
            applied=True,
            iterations=step + 1,
            step_time_ns=40_000_000,
        )
        before = time.perf_counter()
        writer.add_sample(sample, *arrays[step % len(arrays)])
        times.append(time.perf_counter() - before)
    writer.close("finished")
    size = sum(file.stat().st_size for file in (folder / "run").iterdir())
    before = time.perf_counter()
    run = open_run(folder / "run")
    counted = run.scalars["count"].sum(), run.total_histograms().sum()
    return times, size, time.perf_counter() - before, counted


def measure_rows(folder, layers, samples, arrays):
    columns = ", ".join(
        f"{name} {'INTEGER' if SCALAR_DTYPE[name].kind == 'u' else 'REAL'}" for name in arrays[0][0].dtype.names
    )
    marks = ", ".join("?" * (len(SCALAR_DTYPE) + 3))
    connection = sqlite3.connect(folder / "rows.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"CREATE TABLE tensor_samples (sample INTEGER, tensor INTEGER, {columns}, histogram BLOB)")
    times = []
    for sample in track(range(samples), "Rows", transient=True):
        scalars, histograms = arrays[sample % len(arrays)]
        before = time.perf_counter()
        rows = [
            (sample, tensor, *values, zlib.compress(histogram.tobytes(), 1))
            for tensor, (values, histogram) in enumerate(zip(scalars.tolist(), histograms, strict=True))
        ]
        connection.execute("BEGIN")
        connection.executemany(f"INSERT INTO tensor_samples VALUES ({marks})", rows)
        connection.execute("COMMIT")
        times.append(time.perf_counter() - before)
    connection.execute("PRAGMA journal_mode = DELETE")
    size = (folder / "rows.sqlite").stat().st_size
    before = time.perf_counter()
    read = connection.execute("SELECT * FROM tensor_samples ORDER BY sample, tensor").fetchall()
    scalars = np.array([row[2:-1] for row in read], SCALAR_DTYPE)
    totals = np.zeros((layers * len(KINDS), HISTOGRAM_BINS), np.uint64)
    for row in read:
        totals[row[1]] += np.frombuffer(zlib.decompress(row[-1]), np.uint64)
    return times, size, time.perf_counter() - before, (scalars["count"].sum(), totals.sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--samples", type=int, default=1000)
    arguments = parser.parse_args()
    tensors = arguments.layers * len(KINDS)
    arrays = [make_sample(tensors, seed) for seed in range(DISTINCT_SAMPLES)]
    table = Table(title=f"{arguments.layers} layers, {tensors} tensors, {arguments.samples} samples")
    for heading in ("layout", "write median", "mean", "99 %", "bytes", "read"):
        table.add_column(heading, justify="left" if heading == "layout" else "right", no_wrap=True)
    counted = []
    for name, measure in (("BLOBs a sample", measure_blobs), ("a row a tensor", measure_rows)):
        with tempfile.TemporaryDirectory() as folder:
            times, size, read_s, sums = measure(Path(folder), arguments.layers, arguments.samples, arrays)
        median, slow = np.percentile(times, (50, 99))
        write = [f"{seconds * 1e3:.1f} ms" for seconds in (median, np.mean(times), slow)]
        table.add_row(name, *write, f"{size / (tensors * arguments.samples):.0f}", f"{read_s:.2f} s")
        counted.append(sums)
    assert counted[0] == counted[1], "the two layouts do not hold the same numbers"
    console = Console()
    console.print(table)
    console.print(
        f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} CPU cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB; Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, NumPy {np.__version__}"
    )


if __name__ == "__main__":
    sys.exit(main())
