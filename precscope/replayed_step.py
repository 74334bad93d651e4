"""What running a kept train step again showed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from precscope.origin_records import Frame, OriginRecord

__all__ = ["ReplayedStep"]


@dataclass(frozen=True)
class ReplayedStep:
    """One train step, run again without its update.

    Attributes:
        run: The run directory.
        step: The train step.
        loss: Its unscaled loss; None where it was not seen.
        loss_scale: What multiplied the loss; None without a loss scale.
        origin: Where it turned non-finite; None where all was finite.
        frames: Every pass, in the order in which they ran.
        origin_position: Which of the frames is the origin's own; None where there is none, or it is not among them.
        notes: What the reader should know.
    """

    run: str
    step: int
    loss: float | None
    loss_scale: float | None
    origin: OriginRecord | None
    frames: tuple[Frame, ...]
    origin_position: int | None
    notes: tuple[str, ...] = ()
