"""Runs of one training in several precisions, with known times, memory and results."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from precscope.device_records import DeviceSample
from precscope.op_records import OpRecord, ProfiledWindow
from precscope.reader import Run, open_run
from precscope.records import SCALAR_DTYPE, LayerRecord, LossScaleRecord, StepTimeRecord
from precscope.statistics import HISTOGRAM_BINS
from precscope.writer import RunWriter
from tests.core_fixtures import run_record, sample_record, tensor_record
from tests.synthetic_runs import MODEL, layer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

STEPS_IN_WINDOW = 5


def layers(compute: str, *names: str) -> tuple[LayerRecord, ...]:
    """A tower of Dense layers in one dtype."""
    return tuple(layer(name, compute=compute, parameters=100 + place) for place, name in enumerate(names))


def op(layer_id: str | None, ms: float, **changes: Any) -> OpRecord:
    """`ms` milliseconds a step of a product on tensor cores, in the forward pass of a layer."""
    values: dict[str, Any] = {"op": f"model/{layer_id}/MatMul", "op_type": "MatMul", "kernel": "gemm"}
    values |= {"direction": "forward", "dtype": "float16", "count": STEPS_IN_WINDOW, "device": "gpu:0"}
    values |= {"tensor_core": True, "device_time_ns": round(ms * 1e6 * STEPS_IN_WINDOW)}
    return OpRecord(**{**values, "layer": layer_id, **changes})


def write_run(
    path: Path,
    policy: str = "mixed_float16",
    *,
    names: Sequence[str] = ("first", "second", "head"),
    step_ms: Sequence[float] = (2.0, 2.2, 2.0, 2.4),
    batch: int | None = 32,
    losses: Sequence[float | None] = (1.0, 0.5),
    allocated: int | None = 300 * 2**20,
    on_gpu: int | None = None,
    applied: int | None = 980,
    ops: Sequence[OpRecord] = (),
    kernels: dict[str, tuple[int, ...]] | None = None,
    results: dict[str, list[float]] | None = None,
    model: dict[str, Any] | None = None,
    record: dict[str, Any] | None = None,
    status: Any = "finished",
) -> Path:
    """Write a run of 1,000 steps and return its directory; `kernels` gives weights' shapes by layer."""
    started = run_record(name=path.name, model=MODEL | {"dtype_policy": policy} | (model or {}), **(record or {}))
    compute = policy.removeprefix("mixed_")
    writer = RunWriter.create(path, started)
    writer.add_layers([replace(item, order=order) for order, item in enumerate(layers(compute, *names))])
    shapes = list((kernels or {}).items())
    tensors = [
        tensor_record(index, name, kind="weight", name="kernel", dtype="float32", shape=shape)
        for index, (name, shape) in enumerate(shapes)
    ]
    writer.add_tensors(tensors)
    for place, loss in enumerate(losses):
        peak = None if allocated is None else allocated * (1 + place)  # later ones hold the probes' own work too
        sample = sample_record(step=500 * place, loss=loss, allocator_peak_bytes=peak)
        writer.add_sample(
            sample, np.zeros(len(tensors), SCALAR_DTYPE), np.zeros((len(tensors), HISTOGRAM_BINS), np.uint64)
        )
    for place, time_ms in enumerate(step_ms):
        writer.add_step_time(StepTimeRecord(100 * place, 50, round(time_ms * 1e6), batch))
    if applied is not None:
        writer.add_loss_scale(LossScaleRecord(1000, 32768.0, applied, 1000 - applied, None))
    if ops:
        writer.add_op_times(ProfiledWindow(20, STEPS_IN_WINDOW), ops)
    if on_gpu is not None:
        writer.add_device_samples([DeviceSample("gpu:0", 1_700_000_002.0, process_memory_bytes=on_gpu)])
    writer.set_results(results or {})
    writer.set_costs([])
    writer.close(status, None, ended_unix_s=started.started_unix_s + 60.0)
    return path


def read_run(path: Path, policy: str = "mixed_float16", **changes: Any) -> Run:
    """Write such a run and read it again."""
    return open_run(write_run(path, policy, **changes))
