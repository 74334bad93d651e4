"""Where one train step turned finite values into infinities or NaN, from the statistics of its tensors.

Forward, that is the first layer to finish with a bad output: whatever fed it had finished before and was finite. Going
back, it is the layer that was given a finite gradient and handed a bad one on, to the layers before it or to its own
weights. Weights and data that were bad before the step come first, for then no layer is to blame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from precscope.advice.layer_graph import LayerGraph
from precscope.origin_records import DATA_ID, LOSS_ID, Cause, Direction, Frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from precscope.records import LayerRecord, TensorKind

__all__ = ["FoundOrigin", "StepValues", "ValueRange", "all_frames", "find_origin"]

#: Frames that are kept before the origin's own.
FRAMES_BEFORE = 8


@dataclass(frozen=True)
class ValueRange:
    """What is known of one tensor, or of several together; `low` and `high` are None without finite values."""

    dtype: str | None = None
    low: float | None = None
    high: float | None = None
    infinities: int = 0
    nans: int = 0
    count: int = 0

    @property
    def nonfinite(self) -> int:
        """Infinities and NaN."""
        return self.infinities + self.nans

    def with_other(self, other: ValueRange) -> ValueRange:
        """Return both together."""
        if not self.count:
            return other
        lows = [value for value in (self.low, other.low) if value is not None]
        highs = [value for value in (self.high, other.high) if value is not None]
        return ValueRange(
            self.dtype,
            min(lows, default=None),
            max(highs, default=None),
            self.infinities + other.infinities,
            self.nans + other.nans,
            self.count + other.count,
        )


def _together(ranges: Iterable[ValueRange]) -> ValueRange:
    total = ValueRange()
    for item in ranges:
        total = total.with_other(item)
    return total


@dataclass
class StepValues:
    """One recorded step.

    Attributes:
        layers: Every layer, with its order in the forward pass and what it consumes.
        tensors: (layer, kind, name) of each recorded tensor.
        dtypes: dtype of each.
        scalars: SCALAR_DTYPE [tensors].
        loss: The unscaled loss; None where it was not seen.
        spoiled: [tensors], of a weight how many elements the update left non-finite; None where that is not known.
    """

    layers: Sequence[LayerRecord]
    tensors: Sequence[tuple[str, TensorKind, str]]
    dtypes: Sequence[str]
    scalars: NDArray[np.void]
    loss: float | None = None
    spoiled: NDArray[np.int64] | None = None
    graph: LayerGraph = field(init=False)

    def __post_init__(self) -> None:
        self.graph = LayerGraph(self.layers)
        self._ranges: dict[tuple[TensorKind, str], ValueRange] = {}
        for (layer, kind, _), dtype, row in zip(self.tensors, self.dtypes, self.scalars, strict=True):
            known = self._ranges.get((kind, layer), ValueRange())
            self._ranges[kind, layer] = known.with_other(_range(dtype, row))

    @property
    def is_finite(self) -> bool:
        """Whether all that was recorded is finite, the batch left aside: it may hold NaN that the model expects."""
        finite = not any(item.nonfinite for (_, layer), item in self._ranges.items() if layer != DATA_ID)
        spoiled = self.spoiled is not None and bool(self.spoiled.any())
        return finite and not spoiled and (self.loss is None or math.isfinite(self.loss))

    def of(self, kind: TensorKind, layer: str) -> ValueRange:
        """Return the tensors of this kind and layer together; `count` is 0 where none was recorded."""
        return self._ranges.get((kind, layer), ValueRange())

    def bad(self, kind: TensorKind, layer: str) -> bool:
        """Tell whether one of them held infinities or NaN."""
        return self.of(kind, layer).nonfinite > 0

    def named(self, kind: TensorKind, counts: Mapping[int, int] | NDArray[np.int64]) -> tuple[str, ...]:
        """Return "layer/name" of the tensors of a kind whose count is not 0."""
        keys = enumerate(self.tensors)
        return tuple(f"{layer}/{name}" for index, (layer, own, name) in keys if own == kind and counts[index])


@dataclass(frozen=True)
class FoundOrigin:
    """The origin in one step; see `OriginRecord` for the fields."""

    cause: Cause
    direction: Direction | None
    layer: str | None
    arrives_at: str | None = None
    data_finite: bool | None = None
    bad_weights: tuple[str, ...] = ()
    bad_updates: tuple[str, ...] = ()
    frames: tuple[Frame, ...] = ()


def find_origin(step: StepValues) -> FoundOrigin | None:
    """Return where the step turned non-finite; None where all that was recorded is finite."""
    if step.is_finite:
        return None
    data = step.of("activation", DATA_ID)
    data_finite = data.nonfinite == 0 if data.count else None
    nonfinite = {
        index: _range(d, row).nonfinite for index, (d, row) in enumerate(zip(step.dtypes, step.scalars, strict=True))
    }
    weights = step.named("weight", nonfinite)
    first = _first_forward(step)
    loss_is_bad = step.loss is not None and not math.isfinite(step.loss)
    if weights:
        frames = _forward_frames(step, first) if first else ()
        return FoundOrigin("weights", None, None, None, data_finite, weights, (), frames)
    if data_finite is False and (first is not None or loss_is_bad):
        frames = _forward_frames(step, first) if first else (_frame(step, DATA_ID),)
        return FoundOrigin("data", "forward", DATA_ID, None, False, frames=frames)
    if first is not None:
        return FoundOrigin("layer", "forward", first, None, data_finite, frames=_forward_frames(step, first))
    if loss_is_bad:
        frames = (*_last_forward_frames(step), _loss_frame(step))
        return FoundOrigin("loss", "forward", None, None, data_finite, frames=frames)
    return _backward(step, data_finite) or _update(step, data_finite)


def _first_forward(step: StepValues) -> str | None:
    """Return the first layer to finish with a bad output; the order is that of finishing, so the innermost one."""
    bad = (layer.id for layer in step.graph.layers if layer.id != DATA_ID and step.bad("activation", layer.id))
    return next(bad, None)


def _backward(step: StepValues, data_finite: bool | None) -> FoundOrigin | None:
    """Return the layer that handed on a bad gradient though it was given a finite one."""
    leaves = [layer.id for layer in step.graph.layers if layer.id not in step.graph.contents]
    place = {layer_id: number for number, layer_id in enumerate(leaves)}
    arriving = [layer_id for layer_id in leaves if step.bad("gradient", layer_id)]
    at = arriving[-1] if arriving else None
    own = [name for name in leaves if step.bad("weight_gradient", name) and not step.bad("gradient", name)]
    handed_on = None if at is None else _handed_on_by(step, at)
    if handed_on is None and at is not None and not any(place[name] > place[at] for name in own):
        return FoundOrigin(
            "loss", "backward", at, at, data_finite, frames=(*_last_forward_frames(step), _gradient_frame(step, at))
        )
    candidates = [name for name in (handed_on, own[-1] if own else None) if name is not None]
    if not candidates:
        return _own_variables(step, data_finite)
    layer = max(candidates, key=lambda name: place.get(name, -1))
    frames = _backward_frames(step, leaves, layer)
    return FoundOrigin("layer", "backward", layer, at if layer == handed_on else None, data_finite, frames=frames)


def _own_variables(step: StepValues, data_finite: bool | None) -> FoundOrigin | None:
    """Return a container (or the model itself) whose own variables got a bad gradient."""
    bad = [layer.id for layer in step.graph.layers if step.bad("weight_gradient", layer.id)]
    if not bad:
        return None
    return FoundOrigin("layer", "backward", bad[-1], None, data_finite, frames=(_backward_frame(step, bad[-1]),))


def _handed_on_by(step: StepValues, layer: str) -> str | None:
    """Return the consumer of `layer` whose backward pass made the gradient there bad; None where it was the loss."""
    found = list(_recorded_consumers(step, layer))
    spoilt = [name for name in found if step.bad("weight_gradient", name)]
    return next(iter((spoilt or found)[::-1]), None)


def _recorded_consumers(step: StepValues, layer: str) -> Iterable[str]:
    """Yield the layers that read the output of `layer`, those without a recorded gradient skipped over."""
    seen, pending = {layer}, [layer]
    while pending:
        for name in step.graph.consumers(pending.pop()):
            if name in seen or name in step.graph.contents:
                continue
            seen.add(name)
            if step.of("gradient", name).count or step.graph.by_id[name].parameters:
                yield name
            else:
                pending.append(name)


def _update(step: StepValues, data_finite: bool | None) -> FoundOrigin | None:
    if step.spoiled is None or not step.spoiled.any():
        return None
    names = step.named("weight", step.spoiled)
    layers = list(dict.fromkeys(step.tensors[int(index)][0] for index in np.flatnonzero(step.spoiled)))
    frames = tuple(_update_frame(step, layer) for layer in layers[:FRAMES_BEFORE])
    return FoundOrigin("update", "update", layers[0], None, data_finite, bad_updates=names, frames=frames)


def _forward_frames(step: StepValues, until: str) -> tuple[Frame, ...]:
    """Return the last passes up to that of `until`, newest last; layers without a recorded output are left out."""
    names = [layer.id for layer in step.graph.layers if step.of("activation", layer.id).count]
    names = names[: names.index(until) + 1]
    return tuple(_frame(step, name) for name in names[-FRAMES_BEFORE - 1 :])


def _last_forward_frames(step: StepValues) -> tuple[Frame, ...]:
    names = [layer.id for layer in step.graph.layers if step.of("activation", layer.id).count]
    return tuple(_frame(step, name) for name in names[-FRAMES_BEFORE:])


def _backward_frames(step: StepValues, leaves: Sequence[str], until: str) -> tuple[Frame, ...]:
    """Return the last backward passes up to that of `until`, which runs before those of earlier layers."""
    names = [name for name in leaves if step.of("gradient", name).count or step.of("weight_gradient", name).count]
    later = names[names.index(until) :] if until in names else [until]
    return tuple(_backward_frame(step, name) for name in later[: FRAMES_BEFORE + 1][::-1])


def _frame(step: StepValues, layer: str) -> Frame:
    given = _together(step.of("activation", name) for name in step.graph.producers(layer))
    return _frame_of(layer, "forward", given, step.of("activation", layer))


def _backward_frame(step: StepValues, layer: str) -> Frame:
    """Return a layer's backward pass; what comes out goes to the layers before it, or else to its own weights."""
    handed_on, own = (
        _together(step.of("gradient", name) for name in step.graph.producers(layer)),
        step.of("weight_gradient", layer),
    )
    made = own if not handed_on.count or (own.nonfinite and not handed_on.nonfinite) else handed_on
    return _frame_of(layer, "backward", step.of("gradient", layer), made)


def _gradient_frame(step: StepValues, layer: str) -> Frame:
    """Return the loss function's backward pass: no gradient goes in, that at the model's output comes out."""
    return _frame_of(LOSS_ID, "backward", ValueRange(), step.of("gradient", layer))


def _loss_frame(step: StepValues) -> Frame:
    """Return the loss function's forward pass: the model's outputs go in."""
    outputs = [name for name in step.graph.outputs() if name != DATA_ID]
    given = _together(step.of("activation", name) for name in outputs)
    if step.loss is None:
        return _frame_of(LOSS_ID, "forward", given, ValueRange())
    is_finite, is_nan = math.isfinite(step.loss), math.isnan(step.loss)
    value = step.loss if is_finite else None
    made = ValueRange(None, value, value, int(not is_finite and not is_nan), int(is_nan), 1)
    return _frame_of(LOSS_ID, "forward", given, made)


def all_frames(step: StepValues) -> tuple[Frame, ...]:
    """Return every recorded pass of the step, in the order in which they ran: forward, the loss, backward."""
    names = [layer.id for layer in step.graph.layers if layer.id not in step.graph.contents]
    forward = [_frame(step, name) for name in names if step.of("activation", name).count]
    has_gradient = [n for n in names if step.of("gradient", n).count or step.of("weight_gradient", n).count]
    return (*forward, _loss_frame(step), *(_backward_frame(step, name) for name in reversed(has_gradient)))


def _update_frame(step: StepValues, layer: str) -> Frame:
    """Return the update of a layer's weights: its gradients go in; of what comes out only the weights before it."""
    spoiled = step.spoiled if step.spoiled is not None else np.zeros(len(step.tensors), np.int64)
    bad = sum(int(spoiled[index]) for index, (name, _, _) in enumerate(step.tensors) if name == layer)
    given, weights = step.of("weight_gradient", layer), step.of("weight", layer)
    frame = _frame_of(layer, "update", given, weights)
    return frame._replace(nans=bad)


def _frame_of(layer: str, direction: Direction, given: ValueRange, made: ValueRange) -> Frame:
    return Frame(
        layer,
        direction,
        made.dtype,
        given.low,
        given.high,
        given.nonfinite,
        made.low,
        made.high,
        made.infinities,
        made.nans,
        made.count,
    )


def _range(dtype: str, row: np.void) -> ValueRange:
    infinities, nans = int(row["positive_infinities"]) + int(row["negative_infinities"]), int(row["nans"])
    count = int(row["count"])
    is_some_finite = count > infinities + nans
    low, high = (float(row[name]) if is_some_finite else None for name in ("min", "max"))
    return ValueRange(dtype, low, high, infinities, nans, count)
