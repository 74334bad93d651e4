"""Op records summed by layer: milliseconds of a train step, by layer and direction."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precscope.op_records import Direction, OpRecord

__all__ = ["LayerTime", "Part", "layer_times"]

#: What a row stands for: a layer; ops of the forward or backward pass in no layer (the loss, casts of the model); the
#: optimizer with loss scaling; the input pipeline and copies from the host; PrecScope's taps; what nothing names.
Part = Literal["layer", "outside layers", "optimizer", "input", "precscope", "unattributed"]

_PARTS: dict[Direction | None, Part] = {
    "forward": "outside layers",
    "backward": "outside layers",
    "optimizer": "optimizer",
    "input": "input",
    "precscope": "precscope",
    None: "unattributed",
}


@dataclass(frozen=True)
class LayerTime:
    """Device time of one layer, or of one part of the step that is no layer.

    Times are per train step and device: what several GPUs spend in parallel is averaged. On a CPU they are the time of
    all threads together, so they can exceed the step's.

    Attributes:
        part: "layer", or which part of the step this is.
        layer: The layer's id; None for other parts.
        forward_ms: Time of its forward ops, None where no kernel was attributed to them.
        backward_ms: Time of its backward ops, None likewise.
        total_ms: All of its time; 0 for a layer whose work runs only inside the kernels of others.
        share: `total_ms` of all device time in the window, from 0 to 1.
        cast_ms: Of `total_ms`, kernels that do nothing but convert between float formats. Casts that XLA fused into
            other kernels cost no time of their own and are not in it.
        shared_ms: Of `total_ms`, kernels that also do work of other layers.
        shared_with: Layers with which it shares kernels, whether they stand at this layer or at the other.
        tensor_cores: Whether any of its kernels ran on tensor cores; None where none is known to and one is unknown.
        kernels: How many kernels, copies or ops a step runs for it.
    """

    part: Part
    layer: str | None
    forward_ms: float | None
    backward_ms: float | None
    total_ms: float
    share: float
    cast_ms: float
    shared_ms: float
    shared_with: tuple[str, ...]
    tensor_cores: bool | None
    kernels: float


def layer_times(records: Iterable[OpRecord], steps: int) -> tuple[LayerTime, ...]:
    """Return one row a layer and one a part, the costliest first.

    Args:
        records: The records of one profiled window.
        steps: How many train steps the window held, at least 1.

    Raises:
        ValueError: `steps` is not positive.
    """
    if steps < 1:
        raise ValueError(f"A profiled window holds at least one step, got steps={steps}.")
    rows: dict[tuple[Part, str | None], list[OpRecord]] = defaultdict(list)
    partners: dict[str, set[str]] = defaultdict(set)
    devices = set()
    for record in records:
        rows[_row_key(record)].append(record)
        devices.add(record.device)
        if record.layer is not None:
            for other in record.shared_with:
                partners[record.layer].add(other)
                partners[other].add(record.layer)
    for layer in partners:
        rows.setdefault(("layer", layer), [])  # a layer that has no kernel of its own still has a row
    total_ns = sum(record.device_time_ns for found in rows.values() for record in found)
    scale = steps * max(len(devices), 1)
    times = [
        _layer_time(part, layer, found, partners[layer] if layer else set(), scale, total_ns)
        for (part, layer), found in rows.items()
    ]
    return tuple(sorted(times, key=lambda row: (-row.total_ms, row.part, row.layer or "")))


def _row_key(record: OpRecord) -> tuple[Part, str | None]:
    if record.layer is not None and record.direction in ("forward", "backward"):
        return "layer", record.layer
    return _PARTS[record.direction], None


def _layer_time(
    part: Part, layer: str | None, records: list[OpRecord], partners: set[str], scale: int, total_ns: int
) -> LayerTime:
    time_ns = sum(record.device_time_ns for record in records)
    return LayerTime(
        part=part,
        layer=layer,
        forward_ms=_direction_ms(records, "forward", scale),
        backward_ms=_direction_ms(records, "backward", scale),
        total_ms=_ms(time_ns, scale),
        share=time_ns / total_ns if total_ns else 0.0,
        cast_ms=_ms(sum(record.device_time_ns for record in records if record.cast), scale),
        shared_ms=_ms(sum(record.device_time_ns for record in records if record.shared_with), scale),
        shared_with=tuple(sorted(partners)),
        tensor_cores=_any_known(record.tensor_core for record in records),
        kernels=sum(record.count for record in records) / scale,
    )


def _direction_ms(records: list[OpRecord], direction: Direction, scale: int) -> float | None:
    found = [record.device_time_ns for record in records if record.direction == direction]
    return _ms(sum(found), scale) if found else None


def _ms(time_ns: int, scale: int) -> float:
    return time_ns / scale / 1e6


def _any_known(values: Iterable[bool | None]) -> bool | None:
    """Return True where one is True, False where all are, None where it stays open (also of nothing)."""
    known = set(values)
    if True in known:
        return True
    return False if known == {False} else None
