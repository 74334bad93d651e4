"""Records of where a run turned non-finite: the origin, and the frames of the pass that led there.

A frame is one layer's pass, forward or backward: the range of what it was given and of what it made of it. As in a
traceback, the newest comes last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = ["DATA_ID", "LOSS_ID", "Cause", "Direction", "Frame", "NoticedBy", "OriginRecord", "is_code_id"]

#: Id under which the batch itself is recorded, as if an input layer had handed it over.
DATA_ID = "(data)"
#: Stands in frames for the loss function.
LOSS_ID = "(loss)"

Direction = Literal["forward", "backward", "update"]
#: What turned finite values into others: a "layer", the "loss" function, the optimizer's "update"; or nothing did,
#: because the "data" or the "weights" were not finite already.
Cause = Literal["layer", "loss", "update", "data", "weights"]
NoticedBy = Literal["sample", "skipped step", "loss", "weights", "tripwire", "replay"]


def is_code_id(layer_id: str) -> bool:
    """Tell whether an id stands for no layer: the batch, the model's own variables or code between layers."""
    return layer_id.startswith("(") or "/(" in layer_id


class Frame(NamedTuple):
    """One layer's pass in the step at hand; ranges cover finite values alone, and are None where there is none.

    Attributes:
        layer: Id of the layer.
        direction: Whether it is the layer's forward or backward pass.
        dtype: dtype of what came out; None where nothing was recorded.
        input_min: Least of what went in: outputs of the layers before it, or gradients that arrive at its output.
        input_max: Greatest of what went in.
        input_nonfinite: Infinities and NaN among what went in.
        output_min: Least of what came out: its outputs, or the gradients at the layers before it and of its weights.
        output_max: Greatest of what came out.
        infinities: Infinities among what came out.
        nans: NaN among what came out.
        elements: How many came out.
    """

    layer: str
    direction: Direction
    dtype: str | None
    input_min: float | None
    input_max: float | None
    input_nonfinite: int
    output_min: float | None
    output_max: float | None
    infinities: int
    nans: int
    elements: int

    @property
    def nonfinite(self) -> int:
        """Infinities and NaN among what came out."""
        return self.infinities + self.nans


@dataclass(frozen=True)
class OriginRecord:
    """Where finite values first turned non-finite, in one train step.

    Attributes:
        index: Position among the run's origins.
        step: The train step in which that was seen, exactly.
        cause: What turned them.
        direction: In which pass; None where the weights were bad before.
        layer: Id of the layer; None where the loss function or the optimizer did it, or nothing is known.
        arrives_at: In a backward pass the layer at whose output the bad gradient arrives; None where it is not known,
            or where only gradients of the layer's own weights are bad.
        place: The user's line of code that computes in the layer, calls it, or names it; None where none is known.
        epoch: The epoch, from 0; None outside of `fit`.
        batch: The batch within that epoch, from 0; None outside of `fit`.
        loss_scale: The loss scale of that step; None without one.
        applied: Whether the optimizer applied the step; None where that is not known.
        data_finite: Whether the batch was finite; None where it was not recorded.
        bad_weights: Weights that were not finite before the step ("layer/variable").
        bad_updates: Weights that were finite before the step and not after it.
        noticed_by: What showed that something was wrong.
        noticed_step: How many train steps had been made by then.
        finite_step: The last step before it that was seen to be finite; None where there is none.
        dense_steps: Steps that had been sampled densely until it was found.
        times: In how many recorded steps the same was seen.
        last_step: The last of them.
        kept: File of the kept batch, within the run directory; None where none was kept.
        note: What the reader should know, or None.
        frames: The passes that led there, newest last; the last one is the origin's own.
    """

    index: int
    step: int
    cause: Cause
    direction: Direction | None
    layer: str | None
    arrives_at: str | None = None
    place: str | None = None
    epoch: int | None = None
    batch: int | None = None
    loss_scale: float | None = None
    applied: bool | None = None
    data_finite: bool | None = None
    bad_weights: tuple[str, ...] = ()
    bad_updates: tuple[str, ...] = ()
    noticed_by: NoticedBy = "sample"
    noticed_step: int = 0
    finite_step: int | None = None
    dense_steps: int = 0
    times: int = 1
    last_step: int = 0
    kept: str | None = None
    note: str | None = None
    frames: tuple[Frame, ...] = ()
