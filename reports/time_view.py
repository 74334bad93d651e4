"""Where the time of a step and the memory went, as a report tells it: plain data, from a run that was read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precscope.formats import FORMATS
from precscope.reports.text import ABSENT, byte_size, percent, printable
from precscope.run_summary import RunSummary, summarize

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from precscope.layer_time import LayerTime
    from precscope.op_records import OpRecord
    from precscope.reader import Run

__all__ = ["LayerTimeRow", "TimeView", "milliseconds", "time_view"]

_MULTIPLE = 8  # tensor cores take matrices of 16-bit numbers whose sides are multiples of this


@dataclass(frozen=True)
class LayerTimeRow:
    """Device time of one layer, or of a part of the step that is no layer, in a step.

    Attributes:
        name: The layer's id, or the part's name in parentheses.
        dtype: The dtype that the layer computes in; empty for other parts.
        forward_ms: None where no kernel was attributed to it.
        backward_ms: Likewise.
        total_ms: All of its time.
        share: Of all device time in the window.
        cast_ms: Of `total_ms`, converting between float formats.
        tensor_cores: "yes", "no", "no (6×10)" with the sides that are no multiples of 8, or "–" where unknown.
    """

    name: str
    dtype: str
    forward_ms: float | None
    backward_ms: float | None
    total_ms: float
    share: float
    cast_ms: float
    tensor_cores: str


@dataclass(frozen=True)
class TimeView:
    """Time and memory in a glance, and by layer.

    Attributes:
        rows: Label and text; what is not known is "–" with the reason.
        layers: The costliest first; empty where no op time was recorded.
    """

    rows: tuple[tuple[str, str], ...]
    layers: tuple[LayerTimeRow, ...]


def time_view(run: Run, layers: Collection[str] | None = None) -> TimeView | None:
    """Return the time and memory of a run, or None of one that was recorded before they were measured.

    Args:
        run: The run.
        layers: Ids of the layers whose time is asked for; None for all, and for the parts that are none.
    """
    if "profile_steps" not in run.record.options and not (run.step_times or run.op_times or run.device_samples):
        return None
    summary = summarize(run)
    rows = [("step", _step(summary)), ("memory", _memory(run, summary)), ("ops", _ops(run))]
    shown = [time for time in run.layer_times() if layers is None or time.layer in layers]
    return TimeView(
        rows=tuple((label, printable(text)) for label, text in rows),
        layers=tuple(_layer_row(run, time) for time in shown),
    )


def milliseconds(value: float | None) -> str:
    """Return a time in at most six characters: "0.012", "3.4", "1,204"."""
    if value is None:
        return ABSENT
    if value and value < 0.0005:
        return "<0.001"
    decimals = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{decimals}f}"


def _step(summary: RunSummary) -> str:
    time_ms = summary.step_time_ms
    if time_ms is None:
        return f"{ABSENT} not measured: no 3 plain steps in a row, within an epoch and up to a sample"
    parts = [f"{milliseconds(time_ms.median)} ms in the median of {summary.steps_timed:,} plain steps"]
    if time_ms.count > 1:
        quartiles = f"{milliseconds(time_ms.lower_quartile)} to {milliseconds(time_ms.upper_quartile)} ms"
        parts.append(f"quartiles {quartiles}")
    if summary.examples_per_s is not None:
        parts.append(f"{summary.examples_per_s:,.0f} examples/s at batch {summary.batch:,}")
    return " · ".join(parts)


def _memory(run: Run, summary: RunSummary) -> str:
    peaks, parts = summary.memory_bytes, []
    if "allocator" in peaks:
        parts.append(f"{byte_size(peaks['allocator'])} in TensorFlow's allocator before the first sample")
    if "gpu process" in peaks:
        parts.append(f"{byte_size(peaks['gpu process'])} of the GPU for this process")
    if "gpu" in peaks:
        total = max((device.memory_total_bytes or 0 for device in run.devices if device.kind != "host"), default=0)
        of_all = f" of {byte_size(total)}" if total else ""
        parts.append(f"{byte_size(peaks['gpu'])}{of_all} used by all processes")
    if "host process" in peaks:
        parts.append(f"{byte_size(peaks['host process'])} of the host for this process")
    if parts:
        return f"at most {' · '.join(parts)}"
    if run.record.options.get("device_interval_s") == 0:
        return f"{ABSENT} not measured: device_interval_s is 0"
    return f"{ABSENT} not measured{_because(run, 'devices')}"


def _ops(run: Run) -> str:
    window = run.profiled_window
    if window is None:
        return f"{ABSENT} {_why_no_ops(run)}"
    times = run.layer_times()
    share = _share_of(run.op_times)
    on_gpu = any(op.device != "host" for op in run.op_times)
    last = window.first_step + window.steps - 1
    steps = f"steps {window.first_step:,} to {last:,}" if window.steps > 1 else f"step {last:,}"
    parts = [f"{'GPU time' if on_gpu else 'time of CPU threads'} in {steps}"]
    if on_gpu:
        unknown = share(lambda op: op.tensor_core is None)
        known = f" ({percent(unknown)} unknown)" if unknown >= 0.005 else ""
        parts.append(f"tensor cores {percent(share(lambda op: op.tensor_core is True))} of it{known}")
    else:
        parts.append(f"tensor cores {ABSENT} (no GPU)")
    casts_ms = sum(time.cast_ms for time in times)
    parts.append(f"casts {percent(share(lambda op: op.cast))} ({milliseconds(casts_ms)} ms in a step)")
    for part in ("optimizer", "input", "unattributed"):
        parts.append(f"{part} {percent(sum(time.share for time in times if time.part == part))}")
    return " · ".join(parts)


def _share_of(records: Iterable[OpRecord]) -> Callable[[Callable[[OpRecord], bool]], float]:
    ops = tuple(records)
    total_ns = sum(op.device_time_ns for op in ops)
    return lambda test: sum(op.device_time_ns for op in ops if test(op)) / total_ns if total_ns else 0.0


def _why_no_ops(run: Run) -> str:
    options = run.record.options
    if options.get("profile_steps") == 0:
        return "not measured: profile_steps is 0"
    if because := _because(run, "profiler"):
        return f"not measured{because}"
    start = options.get("profile_start", 0)
    if run.status == "running":
        return f"not measured yet: the profiler waits for step {start:,} and for room between samples"
    if max((look.step for look in run.loss_scales), default=0) > start:
        return "not measured: the run ended before the profiled window did"
    return f"not measured: the run ended before step {start:,}"


def _because(run: Run, source: str) -> str:
    """Return the last word of a part of the session about why there is nothing."""
    messages = [notice.message for notice in run.notices if notice.source == source]
    return f": {messages[-1]}" if messages else ""


def _layer_row(run: Run, time: LayerTime) -> LayerTimeRow:
    layer = next((layer for layer in run.layers if layer.id == time.layer), None)
    return LayerTimeRow(
        name=printable(f"({time.part})" if time.layer is None else time.layer),
        dtype=layer.compute_dtype if layer else "",
        forward_ms=time.forward_ms,
        backward_ms=time.backward_ms,
        total_ms=time.total_ms,
        share=time.share,
        cast_ms=time.cast_ms,
        tensor_cores=_tensor_cores(run, time, layer.compute_dtype if layer else None),
    )


def _tensor_cores(run: Run, time: LayerTime, dtype: str | None) -> str:
    """Say whether a layer ran on tensor cores; where it did not in 16 bits, whether its kernel's sides explain it."""
    on_gpu = any(op.device != "host" for op in run.op_times)
    if time.layer is None or time.tensor_cores is None or not on_gpu:
        return ABSENT
    if time.tensor_cores:
        return "yes"
    sides = _odd_sides(run, time.layer) if dtype in FORMATS and FORMATS[dtype].bits == 16 else ""
    return f"no ({sides})" if sides else "no"


def _odd_sides(run: Run, layer: str) -> str:
    for tensor in run.tensors:
        if tensor.layer == layer and tensor.kind == "weight" and tensor.shape and len(tensor.shape) > 1:
            sides = tensor.shape[-2:]
            if any(side is not None and side % _MULTIPLE for side in sides):
                return "×".join("?" if side is None else str(side) for side in sides)
    return ""
