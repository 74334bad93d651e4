"""The errors of the last reference step, own and inherited, as a report tells them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from precscope.reference_records import ADDED_LOSS
from precscope.reports.text import duration, printable, significant

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from precscope.reader import Run
    from precscope.reference_records import ReferenceMoment, ReferenceRecord, ReferenceStepRecord

__all__ = ["MOMENTS", "ReferenceRow", "ReferenceView", "reference_view", "worst_first"]

MOMENTS: dict[ReferenceMoment, str] = {
    "start": "at the start",
    "settled": "once the loss scale had settled",
    "budget": "in between",
    "end": "at the end",
}
#: A gradient of weights whose norm is a smaller share of that of all of them: its error is of no account. A bias before
#: a BatchNorm has such a one, nothing but rounding.
_SMALLEST_SHARE = 1e-3


@dataclass(frozen=True)
class ReferenceRow:
    """One tensor in the training's policy beside float32; None where something was not measured.

    Attributes:
        layer: The layer's id.
        name: The same, printable.
        kind: Of its tensors, as in `TensorRecord`.
        tensor: What it is, in words: "output", "gradient", or the gradient of a weight by its name.
        relative_error: ||policy - reference|| / ||reference||.
        own_relative_error: The same with the layer given the float32 copy of its input: what it adds itself.
        inherited_relative_error: What its input carried already.
        flushed_share: Share of the reference's non-zero values that are zero in the policy.
        own_flushed_share: The same for what the layer adds itself.
        overflowed: Values that are finite in the reference and are not in the policy, NaN included.
        own_overflowed: The same for what the layer adds itself.
        sqnr_db: Signal to quantization noise ratio in decibels.
        cosine: Between the two tensors.
        is_negligible: Whether it is the gradient of weights that hardly move, next to others.
    """

    layer: str
    name: str
    kind: str
    tensor: str
    relative_error: float | None
    own_relative_error: float | None
    inherited_relative_error: float | None
    flushed_share: float | None
    own_flushed_share: float | None
    overflowed: int
    own_overflowed: int | None
    sqnr_db: float | None
    cosine: float | None
    is_negligible: bool


@dataclass(frozen=True)
class ReferenceView:
    """The last reference step.

    Attributes:
        step: The train step.
        moment: Why then, in words.
        steps: How many reference steps the run has.
        cost: What all of them cost, in words; None where that is not known.
        examples: How many examples of its batch it worked on, and the batch; None where unknown.
        batch: Likewise.
        loss_scale: The loss scale that gradients carried in the policy.
        loss_reference: Loss in float32, or None.
        loss_policy: Loss in the training's policy, or None.
        losses: The loss in float32 and in the training's policy, in words; None where the train step shows none.
        random: How random numbers were held equal, or why not; printable.
        left_out: Layers that could not be run in float32, or whose twin failed, and why; printable.
        rows: In the order of the layers.
    """

    step: int
    moment: str
    steps: int
    cost: str | None
    examples: int | None
    batch: int | None
    loss_scale: float
    loss_reference: float | None
    loss_policy: float | None
    losses: str | None
    random: str
    left_out: tuple[str, ...]
    rows: tuple[ReferenceRow, ...]


def reference_view(run: Run, layers: Collection[str] | None = None) -> ReferenceView | None:
    """Return the last reference step of a run, of all layers or of these; None where none was taken."""
    if not run.reference_steps:
        return None
    last = run.reference_steps[-1]
    order = {layer.id: place for place, layer in enumerate(run.layers)}
    records = [record for record in run.reference if (record.step, record.moment) == (last.step, last.moment)]
    records.sort(key=lambda record: order.get(record.layer, len(order)))
    weights = [record.reference_norm or 0.0 for record in records if record.kind == "weight_gradient"]
    least = _SMALLEST_SHARE * math.hypot(*weights)
    return ReferenceView(
        step=last.step,
        moment=MOMENTS[last.moment],
        steps=len(run.reference_steps),
        cost=_cost(run),
        examples=last.examples,
        batch=last.batch,
        loss_scale=last.loss_scale,
        loss_reference=last.loss_reference,
        loss_policy=last.loss_policy,
        losses=_losses(last),
        random=printable(last.random),
        left_out=tuple(map(printable, last.left_out)),
        rows=tuple(_row(record, least) for record in records if layers is None or record.layer in layers),
    )


def _cost(run: Run) -> str | None:
    time_ns = sum(cost.time_ns for cost in run.costs if cost.kind in ("reference", "reference_compile"))
    return duration(time_ns / 1e9) if time_ns else None


def _losses(step: ReferenceStepRecord) -> str | None:
    if step.loss_reference is None or step.loss_policy is None:
        return None
    return f"{significant(step.loss_reference)} in float32, {significant(step.loss_policy)} in the policy"


def _row(record: ReferenceRecord, least: float) -> ReferenceRow:
    own_bad = None if record.own_overflowed is None else record.own_overflowed + (record.own_nans or 0)
    return ReferenceRow(
        layer=record.layer,
        name=printable(record.layer),
        kind=record.kind,
        tensor=_tensor(record),
        relative_error=record.relative_error,
        own_relative_error=record.own_relative_error,
        inherited_relative_error=record.inherited_relative_error,
        flushed_share=_share(record.flushed, record.reference_nonzero),
        own_flushed_share=_share(record.own_flushed, record.own_reference_nonzero),
        overflowed=record.overflowed + record.nans,
        own_overflowed=own_bad,
        sqnr_db=record.sqnr_db,
        cosine=record.cosine,
        is_negligible=record.kind == "weight_gradient" and (record.reference_norm or 0.0) < least,
    )


def _tensor(record: ReferenceRecord) -> str:
    if record.kind == "weight_gradient":
        return f"gradient of {printable(record.name)}"
    if record.name.startswith(ADDED_LOSS):
        return printable(record.name)
    words = "output" if record.kind == "activation" else "gradient"
    return words if record.name == "0" else f"{words} {printable(record.name)}"


def _share(part: int | None, whole: int | None) -> float | None:
    return part / whole if part is not None and whole else None


def worst_first(rows: Sequence[ReferenceRow]) -> list[ReferenceRow]:
    """Return the rows by what each layer adds itself: what overflows, what is flushed, the relative error."""

    def harm(row: ReferenceRow) -> tuple[bool, bool, float, float]:
        overflows = bool(row.own_overflowed)
        return (not row.is_negligible, overflows, row.own_flushed_share or 0.0, row.own_relative_error or 0.0)

    return sorted(rows, key=harm, reverse=True)
