"""The errors of the last reference step, own and inherited, as a report tells them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from precscope.reports.text import printable

if TYPE_CHECKING:
    from collections.abc import Collection

    from precscope.reader import Run

__all__ = ["ReferenceRow", "ReferenceView", "reference_view"]


@dataclass(frozen=True)
class ReferenceRow:
    """One tensor in the training's policy beside float32; None where something was not measured.

    Attributes:
        layer: The layer's id.
        name: The same, printable.
        kind: Of its tensors, as in `TensorRecord`.
        relative_error: ||policy - reference|| / ||reference||.
        own_relative_error: The same with the layer given the float32 copy of its input: what it adds itself.
        flushed_share: Share of the reference's non-zero values that are zero in the policy.
        overflowed: Values that are finite in the reference and are not in the policy.
        sqnr_db: Signal to quantization noise in decibels.
        cosine: Between the two tensors.
    """

    layer: str
    name: str
    kind: str
    relative_error: float | None
    own_relative_error: float | None
    flushed_share: float | None
    overflowed: int
    sqnr_db: float | None
    cosine: float | None


@dataclass(frozen=True)
class ReferenceView:
    """The last reference step.

    Attributes:
        step: The train step.
        steps: How many reference steps the run has.
        examples: How many examples of its batch it worked on, and the batch; None where unknown.
        batch: Likewise.
        loss_reference: Loss in float32, or None.
        loss_policy: Loss in the training's policy, or None.
        rows: In the order of the layers.
    """

    step: int
    steps: int
    examples: int | None
    batch: int | None
    loss_reference: float | None
    loss_policy: float | None
    rows: tuple[ReferenceRow, ...]


def reference_view(run: Run, layers: Collection[str] | None = None) -> ReferenceView | None:
    """Return the last reference step of a run, of `layers` only where given; None where none was taken."""
    steps = getattr(run, "reference_steps", ())
    if not steps:
        return None
    last = steps[-1]
    order = {layer.id: place for place, layer in enumerate(run.layers)}
    records = [record for record in getattr(run, "reference", ()) if record.step == last.step]
    if layers is not None:
        records = [record for record in records if record.layer in layers]
    records.sort(key=lambda record: order.get(record.layer, len(order)))
    return ReferenceView(
        step=last.step,
        steps=len(steps),
        examples=last.examples,
        batch=last.batch,
        loss_reference=last.loss_reference,
        loss_policy=last.loss_policy,
        rows=tuple(map(_row, records)),
    )


def _row(record: Any) -> ReferenceRow:
    nonzero = record.reference_nonzero
    return ReferenceRow(
        layer=record.layer,
        name=printable(record.layer),
        kind=record.kind,
        relative_error=record.relative_error,
        own_relative_error=record.own_relative_error,
        flushed_share=record.flushed / nonzero if nonzero else None,
        overflowed=record.overflowed,
        sqnr_db=record.sqnr_db,
        cosine=record.cosine,
    )
