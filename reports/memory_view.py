"""Memory over time, as series for a figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precscope.reader import Run

__all__ = ["MemorySeries", "memory_series"]

_MOST_POINTS = 500


@dataclass(frozen=True)
class MemorySeries:
    """Bytes in use over the seconds since the run began; of a long series, the most in each stretch of time."""

    label: str
    seconds: tuple[float, ...]
    bytes: tuple[int, ...]


def memory_series(run: Run) -> tuple[MemorySeries, ...]:
    """Return the memory of each device, of this process and of all, and what TensorFlow's allocator handed out."""
    series = []
    for device in dict.fromkeys(sample.device for sample in run.device_samples):
        states = [state for state in run.device_samples if state.device == device]
        owners = {
            "this process": ((state.time_unix_s, state.process_memory_bytes) for state in states),
            "all processes": ((state.time_unix_s, state.memory_used_bytes) for state in states),
        }
        series += [_series(run, f"{device}, {owner}", points) for owner, points in owners.items()]
    allocated = ((sample.time_unix_s, sample.allocator_current_bytes) for sample in run.samples)
    series.append(_series(run, "TensorFlow's allocator", allocated))
    return tuple(item for item in series if item.seconds)


def _series(run: Run, label: str, points: Iterable[tuple[float, int | None]]) -> MemorySeries:
    known = [(time_s - run.record.started_unix_s, size) for time_s, size in points if size is not None]
    stride = -(-len(known) // _MOST_POINTS) or 1
    highest = [max(known[start : start + stride], key=lambda point: point[1]) for start in range(0, len(known), stride)]
    return MemorySeries(label, tuple(time_s for time_s, _ in highest), tuple(size for _, size in highest))
