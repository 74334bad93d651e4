"""Records and arrays for tests of the core, of any number and without a framework."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from precscope.records import SCALAR_DTYPE, LayerRecord, RunRecord, SampleRecord, TensorRecord
from precscope.statistics import HISTOGRAM_BINS, describe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from precscope.statistics import TensorStatistics


def run_record(**changes: Any) -> RunRecord:
    values: dict[str, Any] = {
        "name": "mnist",
        "status": "running",
        "error": None,
        "started_unix_s": 1_700_000_000.25,
        "ended_unix_s": None,
        "options": {"overhead_budget": 0.02, "layers": None},
        "model": {"name": "mlp", "layers": 2, "dtype_policy": "mixed_float16"},
        "software": {"python": "3.11.7", "keras": "3.15.1"},
        "hardware": {"cpu_count": 2, "gpus": [{"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 85_520_809_984}]},
    }
    return RunRecord(**{**values, **changes})


def layer_record(id: str = "dense", **changes: Any) -> LayerRecord:
    values: dict[str, Any] = {
        "order": 0,
        "type": "Dense",
        "keras_path": f"mlp/{id}",
        "policy": "mixed_float16",
        "compute_dtype": "float16",
        "variable_dtype": "float32",
        "parameters": 7850,
        "inputs": ("flatten",),
    }
    return LayerRecord(id=id, **{**values, **changes})


def tensor_record(index: int, layer: str = "dense", **changes: Any) -> TensorRecord:
    values: dict[str, Any] = {"kind": "activation", "name": "0", "dtype": "float16", "shape": (None, 10)}
    return TensorRecord(index=index, layer=layer, **{**values, **changes})


def sample_record(step: int, **changes: Any) -> SampleRecord:
    values: dict[str, Any] = {
        "index": 0,
        "time_unix_s": 1_700_000_001.5,
        "loss": 0.25,
        "loss_scale": 32768.0,
        "applied": True,
        "iterations": step + 1,
        "step_time_ns": 1_000_000,
    }
    return SampleRecord(step=step, **{**values, **changes})


def arrays_of(*tensors: NDArray[np.generic]) -> tuple[NDArray[np.void], NDArray[np.uint64]]:
    """Return what a sample of `tensors` holds: SCALAR_DTYPE [tensors] and uint64 [tensors, HISTOGRAM_BINS]."""
    scalars = np.zeros(len(tensors), SCALAR_DTYPE)
    histograms = np.zeros((len(tensors), HISTOGRAM_BINS), np.uint64)
    for row, tensor in enumerate(tensors):
        statistics = describe(tensor)
        _fill(scalars[row : row + 1], statistics)
        histograms[row] = statistics.histogram
    return scalars, histograms


def _fill(row: NDArray[np.void], statistics: TensorStatistics) -> None:
    for name in SCALAR_DTYPE.names or ():
        row[name] = getattr(statistics, name, 0) or 0


def random_arrays(tensors: int, seed: int) -> tuple[NDArray[np.void], NDArray[np.uint64]]:
    """Return arrays of a sample with `tensors` normally distributed tensors of 32 elements."""
    random = np.random.default_rng(seed)
    return arrays_of(*random.standard_normal((tensors, 32)).astype(np.float16))


@contextmanager
def public_directory() -> Iterator[Path]:
    """Give a new directory that every user can enter; pytest's own are closed to others."""
    directory = Path(tempfile.mkdtemp(prefix="precscope-test-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        directory.chmod(0o755)
        shutil.rmtree(directory)


@contextmanager
def as_plain_user() -> Iterator[None]:
    """Do without root's right to write everywhere, where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)  # nobody
    try:
        yield
    finally:
        os.seteuid(0)
