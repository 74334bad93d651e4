"""The records of a run: plain frozen dataclasses in which recording, analysis and presentation meet.

Units are in the names. Steps count train steps that the session saw, from 0, also those whose update was skipped.
Absence is None, never 0 or NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

__all__ = [
    "SCALAR_DTYPE",
    "CostRecord",
    "LayerRecord",
    "LossScaleRecord",
    "NoticeRecord",
    "ProgressRecord",
    "RunRecord",
    "SampleRecord",
    "StepTimeRecord",
    "TensorKind",
    "TensorRecord",
]

TensorKind = Literal["activation", "gradient", "weight", "weight_gradient"]
RunStatus = Literal["running", "finished", "interrupted", "failed"]
CostKind = Literal[
    "build",
    "compile",
    "step",
    "read",
    "write",
    "idle",
    "poll",
    "dense",
    "tripwire",
    "profiler",
    "device",
    "reference",
    "reference_compile",
]

#: What is stored of one tensor at one sample, beside its histogram. Without finite values `min`, `max`, `mean`, `rms`
#: and without non-zero values `smallest_nonzero` hold no meaning (the counts tell; the typed API gives None).
#: `updates` counts weights whose gradient was not zero in this step, `lost_updates` those of them that the step left
#: as they were; both are 0 for other kinds and for skipped steps. `histogram_count` is how many elements the histogram
#: looked at: all of them up to statistics.HISTOGRAM_LIMIT, a regular subset above (then it is sampled, not exact).
SCALAR_DTYPE = np.dtype(
    [(name, "<u8") for name in ("count", "zeros", "subnormals", "positive_infinities", "negative_infinities", "nans")]
    + [("updates", "<u8"), ("lost_updates", "<u8"), ("histogram_count", "<u8")]
    + [(name, "<f4") for name in ("min", "max", "smallest_nonzero", "mean", "rms")]
)


@dataclass(frozen=True)
class RunRecord:
    """One profiled run: what was trained, on what, with which settings, and how it ended.

    Attributes:
        name: The run directory's name.
        status: "running" (also after a kill), "finished", "interrupted" (Ctrl-C) or "failed" (an exception).
        error: The exception's type and message where the status is "failed" or "interrupted", else None.
        started_unix_s: Wall-clock start in seconds since 1970.
        ended_unix_s: Wall-clock end, None while running.
        options: The session's options by name, defaults included.
        model: name, class, layers, parameters, dtype_policy, optimizer, inner_optimizer, optimizer_dtype_handling, ...
        software: Versions by package name, and "python".
        hardware: platform, cpu, cpu_count, memory_bytes, gpus (a list of name and memory_bytes), driver.
    """

    name: str
    status: RunStatus
    error: str | None
    started_unix_s: float
    ended_unix_s: float | None
    options: dict[str, Any]
    model: dict[str, Any]
    software: dict[str, str]
    hardware: dict[str, Any]


@dataclass(frozen=True)
class LayerRecord:
    """One layer of the model.

    Attributes:
        id: Stable and unique in the run: the layer's path by ownership ("encoder/dense", "attention/_softmax").
        order: Position in the forward pass as it was traced; layers that never ran come last, in model order.
        type: Class name ("Dense").
        keras_path: `layer.path`, which DTypePolicyMap keys match; None for sub-layers that own no variables.
        policy: Name of the dtype policy ("mixed_float16").
        compute_dtype: dtype of the layer's computation.
        variable_dtype: dtype of its variables.
        parameters: Number of its own weights' elements, sub-layers not counted.
        inputs: Ids of the layers whose outputs it was seen to consume, empty where unknown.
        unseen: Why its output is not recorded ("no float output", "not selected", ...); None where it is.
        gradient_unseen: Why the gradient at its output is not recorded; None where it is.
        autocast: Whether Keras casts what the layer is given to `compute_dtype`; some layers take it as it is.
    """

    id: str
    order: int
    type: str
    keras_path: str | None
    policy: str
    compute_dtype: str
    variable_dtype: str
    parameters: int = 0
    inputs: tuple[str, ...] = ()
    unseen: str | None = None
    gradient_unseen: str | None = None
    autocast: bool = True


@dataclass(frozen=True)
class TensorRecord:
    """One recorded tensor: a row of every sample.

    Attributes:
        index: Position in a sample's arrays.
        layer: Id of the layer it belongs to.
        kind: "activation" (the layer's output), "gradient" (the gradient that arrives at that output, scaled by the
            loss scale), "weight" (before the update) or "weight_gradient" (as the optimizer receives it, scaled).
        name: Output index ("0") or the variable's name within the layer ("kernel").
        dtype: The tensor's dtype, a key of FORMATS; the statistics count subnormals against it.
        shape: Static shape of one call, None where a dimension varies.
        calls: How many calls a step made; their statistics are merged. None where it is not known (inside a loop).
        note: What the reader should know ("merged over time steps"), or None.
    """

    index: int
    layer: str
    kind: TensorKind
    name: str
    dtype: str
    shape: tuple[int | None, ...] | None
    calls: int | None = 1
    note: str | None = None


@dataclass(frozen=True)
class SampleRecord:
    """One sampled step.

    Attributes:
        index: Position among the samples.
        step: The train step, from 0.
        time_unix_s: Wall-clock time at its end.
        loss: The step's loss, unscaled, or None where it was not seen.
        loss_scale: Scale that the step's gradients carry; None without loss scaling.
        applied: Whether the optimizer applied the update; None where that is unknown.
        iterations: The optimizer's own counter of applied updates after the step, or None.
        step_time_ns: Time of the probed step, read and write not counted.
        allocator_current_bytes: What TensorFlow's allocator had handed out on the first GPU before the step; None where
            it keeps no account (a CPU).
        allocator_peak_bytes: The most that it had handed out by then since the program began: before the first sample
            that of the training alone, later that of probed steps too.
    """

    index: int
    step: int
    time_unix_s: float
    loss: float | None
    loss_scale: float | None
    applied: bool | None
    iterations: int | None
    step_time_ns: int
    allocator_current_bytes: int | None = None
    allocator_peak_bytes: int | None = None


@dataclass(frozen=True)
class StepTimeRecord:
    """One stretch of plain steps whose time was measured, with no sample and no profiler in it.

    Attributes:
        first_step: The stretch's first train step.
        steps: How many steps it holds.
        mean_time_ns: Its time by its steps. What the training did between the steps (callbacks) is in it.
        batch: Examples in the usual batch, None where unknown.
    """

    first_step: int
    steps: int
    mean_time_ns: int
    batch: int | None


@dataclass(frozen=True)
class LossScaleRecord:
    """One look at the optimizer: exact at that moment, silent about when in between the scale moved.

    Attributes:
        step: Number of train steps that the session had seen.
        loss_scale: The scale then; None without loss scaling.
        steps_applied: Updates applied since the session began; None where the optimizer's counter is unknown.
        steps_skipped: Steps seen and not applied since the session began; None where unknown.
        steps_since_change: Keras' counter of finite steps since the scale last moved; None without a dynamic scale.
    """

    step: int
    loss_scale: float | None
    steps_applied: int | None
    steps_skipped: int | None
    steps_since_change: int | None


@dataclass(frozen=True)
class NoticeRecord:
    """Something the session has to say: a probe that switched itself off, a limit that was met.

    Attributes:
        step: The step at which it was noticed, or None before the first.
        level: "info", "warning" or "error".
        source: The part of PrecScope that speaks ("probes", "sampling", ...).
        message: What happened and what it means.
    """

    step: int | None
    level: Literal["info", "warning", "error"]
    source: str
    message: str


@dataclass(frozen=True)
class ProgressRecord:
    """How far the training was at a moment, for those who watch it: written about once a second, in place of the last.

    Attributes:
        step: Train steps that had begun since the session did; a GPU may still be at work on the last few.
        time_unix_s: Wall-clock time.
    """

    step: int
    time_unix_s: float


@dataclass(frozen=True)
class CostRecord:
    """What one part of PrecScope cost.

    Attributes:
        kind: "build" (entering the session), "compile" (tracing and compiling the probed step, its first run
            included), "step" (a probed step beyond a plain one), "read", "write", "idle" (an estimate: the device has
            nothing to do until the step after a sample is launched), "poll", "dense" (all of that for steps sampled one
            after the other because values had turned non-finite), "tripwire" (the host's time for it, replays
            included), "profiler" (the profiled window beyond its plain steps, its trace parsed and written), "device"
            (the thread that samples devices), "reference" (reference steps) or "reference_compile" (tracing them, with
            their first run).
        count: How many times.
        time_ns: Total time; of "step", the estimate described in docs/overhead.md, of "device" CPU time of its thread.
    """

    kind: CostKind
    count: int
    time_ns: int
