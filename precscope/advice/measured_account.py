"""Whether a run's findings rest on a measurement against float32, in words; and how to get one where they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precscope.advice.wording import counted
from precscope.formats import FORMATS

if TYPE_CHECKING:
    from precscope.reader import Run

__all__ = ["measured_account"]


def measured_account(run: Run) -> str | None:
    """Return a sentence or two; None where no recorded tensor is in 16 bits, so that there is nothing to measure."""
    if not any(FORMATS[tensor.dtype].bits == 16 for tensor in run.tensors):
        return None
    steps = run.reference_steps
    if steps:
        first, last = steps[0].step, steps[-1].step
        where = f"at step {first:,}" if len(steps) == 1 else f"from step {first:,} to {last:,}"
        return f"Measured against float32 in {counted(len(steps), 'reference step')} {where}."
    told = [notice.message for notice in run.notices if notice.source == "reference"]
    if told:
        return f"Not measured against float32: {told[-1]}"
    if (run.record.model.get("replicas") or 1) > 1:
        return "Not measured against float32: a batch is run again in a training on one device only."
    if run.status == "running":
        return "Not measured against float32: no reference step was taken yet."
    return "Not measured against float32: no reference step was taken. Record again with reference=True for that."
