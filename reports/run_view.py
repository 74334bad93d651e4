"""What was trained, on what, how it ended, and what PrecScope cost: the lines around a report."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from precscope.reports.text import byte_size, duration, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.reader import Run
    from precscope.records import CostRecord

__all__ = ["CostView", "RunView", "cost_in_words", "cost_view", "model_line", "run_view"]

_STATES = {
    "running": "still running",
    "finished": "finished",
    "interrupted": "interrupted",
    "failed": "failed",
    "killed": "killed: its process is gone",
}
#: Which packages are named, as their users write them.
_SOFTWARE = {"keras": "Keras", "tensorflow": "TensorFlow", "python": "Python"}
_COSTS = {
    "build": "set-up",
    "compile": "compiling",
    "step": "sampled steps",
    "read": "reading",
    "write": "writing",
    "idle": "the device idle after samples",
    "poll": "watching the loss scale",
    "dense": "sampling densely after NaN or infinity",
    "tripwire": "tripwire",
    "profiler": "op profiler",
    "device": "device sampling",
    "reference": "reference steps",
    "reference_compile": "tracing reference steps",
}
_LOSS_SCALING = {"dynamic": "dynamic loss scale", "static": "fixed loss scale", "none": "no loss scale"}


@dataclass(frozen=True)
class RunView:
    """The run in one glance; all text is printable, None where nothing is known.

    Attributes:
        name: The run directory's name.
        state: How it ended, and after how long.
        started: When it began.
        ended_well: False where an exception, a kill or Ctrl-C ended it.
        error: The exception that ended it.
        model: The model in a line.
        machine: Hardware and software in a line.
    """

    name: str
    state: str
    started: str
    ended_well: bool
    error: str | None
    model: str
    machine: str


@dataclass(frozen=True)
class CostView:
    """What PrecScope cost: in all, as a share of the run's time (None while it runs), and by part, largest first."""

    total: str
    share: float | None
    parts: tuple[str, ...]


def run_view(run: Run) -> RunView:
    """Return the run in one glance."""
    record = run.record
    started = datetime.fromtimestamp(record.started_unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    took = None if record.ended_unix_s is None else record.ended_unix_s - record.started_unix_s
    after = f" after {duration(took)}" if took is not None else ""
    return RunView(
        name=printable(record.name),
        state=f"{_STATES[run.status]}{after}",
        started=started,
        ended_well=run.status in ("running", "finished"),
        error=None if record.error is None else printable(" ".join(record.error.split())),
        model=model_line(record.model),
        machine=_joined([*_hardware(record.hardware), *_software(record.software)]),
    )


def cost_view(run: Run) -> CostView | None:
    """Return what PrecScope cost, or None where nothing was measured."""
    ended = run.record.ended_unix_s
    return cost_in_words(run.costs, None if ended is None else ended - run.record.started_unix_s)


def cost_in_words(costs: Sequence[CostRecord], took_s: float | None) -> CostView | None:
    """Return these costs in words, beside the run's time where that is known; None where nothing was measured."""
    costs = [cost for cost in costs if cost.time_ns > 0]
    if not costs:
        return None
    total_s = sum(cost.time_ns for cost in costs) / 1e9
    ranked = sorted(costs, key=lambda cost: -cost.time_ns)
    return CostView(
        total=duration(total_s),
        share=total_s / took_s if took_s else None,
        parts=tuple(
            f"{_COSTS.get(cost.kind, cost.kind)} {duration(cost.time_ns / 1e9)}"
            + (f" ({cost.count:,}×)" if cost.count > 1 else "")
            for cost in ranked
        ),
    )


def model_line(model: dict[str, Any]) -> str:
    """Return the model in a line, printable."""
    return _joined(_model(model))


def _joined(parts: Sequence[str | None]) -> str:
    return " · ".join(printable(part) for part in parts if part)


def _model(model: dict[str, Any]) -> Sequence[str | None]:
    parameters, layers = model.get("parameters"), model.get("layers")
    optimizer = model.get("inner_optimizer") or model.get("optimizer")
    scaling = _LOSS_SCALING.get(model.get("loss_scaling", ""))
    return [
        model.get("name"),
        f"{layers:,} layers" if isinstance(layers, int) else None,
        f"{parameters:,} parameters" if isinstance(parameters, int) else None,
        model.get("dtype_policy"),
        f"{optimizer} with {scaling}" if optimizer and scaling else optimizer,
        _replicas(model),
    ]


def _replicas(model: dict[str, Any]) -> str | None:
    replicas, workers = model.get("replicas") or 1, model.get("workers") or 1
    if replicas < 2:
        return None
    return f"{replicas:,} replicas" + (f" on {workers:,} workers" if workers > 1 else "")


def _hardware(hardware: dict[str, Any]) -> Sequence[str | None]:
    gpus = [f"{gpu.get('name')} ({byte_size(gpu.get('memory_bytes'))})" for gpu in hardware.get("gpus") or ()]
    names = [f"{gpus.count(gpu)} × {gpu}" if gpus.count(gpu) > 1 else gpu for gpu in dict.fromkeys(gpus)]
    cores = hardware.get("cpu_count")
    cpu = " ".join(str(part) for part in (hardware.get("cpu"), f"({cores} cores)" if cores else "") if part)
    return names or ["no GPU", cpu]


def _software(software: dict[str, str]) -> Sequence[str | None]:
    return [f"{title} {software[name]}" for name, title in _SOFTWARE.items() if name in software]
