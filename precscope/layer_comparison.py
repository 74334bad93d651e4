"""Time by layer of several runs, and why a layer became faster or slower, as far as the data tell."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from precscope.layer_time import LayerTime
    from precscope.reader import Run

__all__ = ["LayerComparison", "compare_layers"]

# Below these a change is not explained: profiled windows are short.
_LEAST_CHANGE, _LEAST_SHARE = 0.05, 0.01
_MULTIPLE = 8  # tensor cores take dimensions that are multiples of it
_CAST_SHARE, _SHARED_SHARE = 0.25, 0.5
_PRODUCT = re.compile(r"Conv|MatMul|Einsum|Dot|RNN|Attention")


@dataclass(frozen=True)
class LayerComparison:
    """One layer, or a part of the step that is none, in every run. Tuples hold one value a run.

    Attributes:
        part: "layer", or which part of the step this is ("optimizer", ...).
        layer: The layer's id in the first run; None for other parts.
        time_ms: Device time in a step; None where the run has none for it.
        dtypes: The layer's compute dtype; None for other parts.
        ratios: Time over that of the reference; None where either is missing.
        reasons: Why it changed against the reference, from what was recorded; empty where nothing tells.
    """

    part: str
    layer: str | None
    time_ms: tuple[float | None, ...]
    dtypes: tuple[str | None, ...]
    ratios: tuple[float | None, ...]
    reasons: tuple[tuple[str, ...], ...]


def compare_layers(
    runs: Sequence[Run], matches: Sequence[Mapping[str, str]], reference: int
) -> tuple[LayerComparison, ...]:
    """Return a row for each layer and part that has device time in some run, the costliest first.

    Args:
        runs: The runs.
        matches: For each run its layers' ids by those of the first.
        reference: Index of the run that the others are compared with.
    """
    views = [_TimedRun(run, match) for run, match in zip(runs, matches, strict=True)]
    if not any(view.times for view in views):
        return ()
    keys = dict.fromkeys(key for view in views for key in view.times)
    rows = [_row(key, views, reference) for key in keys]
    return tuple(sorted(rows, key=lambda row: -max(time or 0.0 for time in row.time_ms)))


class _TimedRun:
    """One run's device times by (part, layer id in the first run), and what explains them."""

    def __init__(self, run: Run, match: Mapping[str, str]) -> None:
        own_to_first = {own: first for first, own in match.items()}
        self.run = run
        self.own = match
        self.times: dict[tuple[str, str | None], LayerTime] = {
            (time.part, own_to_first.get(time.layer, time.layer) if time.layer else None): time
            for time in run.layer_times()
        }
        self.on_gpu = any(op.device != "host" for op in run.op_times)  # a CPU has no tensor cores
        self.step_ms = sum(time.total_ms for time in self.times.values())

    def time_ms(self, key: tuple[str, str | None]) -> float | None:
        time = self.times.get(key)
        return None if time is None else time.total_ms

    def dtype(self, layer: str | None) -> str | None:
        own = None if layer is None else self.own.get(layer)
        return next((item.compute_dtype for item in self.run.layers if item.id == own), None)

    def has_products(self, layer: str | None) -> bool | None:
        """Tell whether any of its ops is a product or convolution; None where no op says what it is."""
        own = None if layer is None else self.own.get(layer)
        types = [op.op_type for op in self.run.op_times if op.layer == own and op.op_type and not op.cast]
        return any(_PRODUCT.search(type) for type in types) if types else None

    def awkward_dimensions(self, layer: str | None) -> list[int]:
        """Return dimensions of its recorded matrices that are no multiple of 8: the last two, in and out."""
        own = None if layer is None else self.own.get(layer)
        tensors = [tensor for tensor in self.run.tensors if tensor.layer == own and tensor.kind == "weight"]
        shapes = [tensor.shape for tensor in tensors if tensor.shape and len(tensor.shape) >= 2]
        return sorted({size for shape in shapes for size in shape[-2:] if size and size % _MULTIPLE})


def _row(key: tuple[str, str | None], views: Sequence[_TimedRun], reference: int) -> LayerComparison:
    part, layer = key
    times = tuple(view.time_ms(key) for view in views)
    base = times[reference]
    return LayerComparison(
        part=part,
        layer=layer,
        time_ms=times,
        dtypes=tuple(view.dtype(layer) for view in views),
        ratios=tuple(time / base if time is not None and base else None for time in times),
        reasons=tuple(_reasons(key, view, views[reference]) for view in views),
    )


def _reasons(key: tuple[str, str | None], view: _TimedRun, other: _TimedRun) -> tuple[str, ...]:
    own, base = view.times.get(key), other.times.get(key)
    if view is other or key[1] is None or own is None or base is None:
        return ()
    change_ms = own.total_ms - base.total_ms
    if abs(change_ms) < max(_LEAST_CHANGE * base.total_ms, _LEAST_SHARE * other.step_ms):
        return ()
    reasons = _why_faster(key[1], own, base, view) if change_ms < 0 else _why_slower(key[1], own, base, view)
    if own.total_ms and own.shared_ms >= _SHARED_SHARE * own.total_ms:
        partners = ", ".join(own.shared_with[:2])
        reasons.append(f"its kernels also do work of {partners}, so its own time is not known exactly")
    return tuple(reasons)


def _why_faster(layer: str, own: LayerTime, base: LayerTime, view: _TimedRun) -> list[str]:
    if own.tensor_cores:
        before = {True: "as before", False: "which it was not", None: "before: not known"}[base.tensor_cores]
        return [f"runs on tensor cores ({before})"]
    if view.has_products(layer) is False:
        return ["no products among its ops: it is bound by memory, and moves fewer bytes"]
    return []


def _why_slower(layer: str, own: LayerTime, base: LayerTime, view: _TimedRun) -> list[str]:
    reasons = []
    more_cast_ms = own.cast_ms - base.cast_ms
    if more_cast_ms >= _CAST_SHARE * (own.total_ms - base.total_ms):
        reasons.append(f"{more_cast_ms:.2g} ms more go into casts")
    if view.on_gpu and own.tensor_cores is False and view.has_products(layer):
        awkward = view.awkward_dimensions(layer)
        sizes = f"; {', '.join(map(str, awkward))}: no multiple of {_MULTIPLE}" if awkward else ""
        left = " any more" if base.tensor_cores else ""
        reasons.append(f"its products do not run on tensor cores{left}{sizes}")
    return reasons
