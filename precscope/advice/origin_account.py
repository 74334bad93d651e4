"""Where a run turned non-finite, in words: which of its origins matters most, and a sentence on each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precscope.advice.wording import counted, listed, plain, quoted
from precscope.origin_records import DATA_ID, Frame, OriginRecord, is_code_id

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main_origin", "origin_sentence", "what_is_not_known"]


def main_origin(origins: Sequence[OriginRecord]) -> OriginRecord | None:
    """Return the origin that matters most; None where nothing turned non-finite.

    A forward pass, a loss, data or an update that went wrong comes before a gradient that overflowed, which a dynamic
    loss scale brings about now and then in a healthy training. Of each kind the earliest counts. Weights that were bad
    already say least.
    """

    def rank(origin: OriginRecord) -> tuple[int, int]:
        if origin.cause == "weights":
            return 2, origin.step
        return int(origin.direction == "backward"), origin.step

    return min(origins, key=rank, default=None)


def origin_sentence(origin: OriginRecord) -> str:
    """Return what happened, where and when, in one sentence."""
    where = f"In train step {origin.step:,}{_place_in_epoch(origin)} "
    return f"{where}{_what(origin)}{_again(origin)}."


def what_is_not_known(origin: OriginRecord) -> str | None:
    """Return what the run cannot tell about an origin, and what would have told it; None where nothing is missing."""
    if origin.cause == "weights":
        since = "before the first sampled step"
        if origin.finite_step is not None:
            since = f"between step {origin.finite_step:,}, the last that was seen to be finite, and this one"
        return (
            f"The fault itself lies {since}: which layer it was cannot be known any more, for the weights are lost. "
            "With tripwire=True the next run keeps that step."
        )
    if origin.noticed_by in ("skipped step", "loss") and origin.kept is None:
        before = "" if origin.finite_step is None else f" after step {origin.finite_step:,}"
        return (
            f"The first sign came earlier{before}, in a step that was not looked at; this is the first one that was. "
            "With tripwire=True the next run tells the first one exactly."
        )
    return None


def _what(origin: OriginRecord) -> str:
    frame = origin.frames[-1] if origin.frames else None
    if origin.cause == "weights":
        return f"the weights were not finite already: {listed(origin.bad_weights)}"
    if origin.cause == "data":
        amount = "infinities or NaN" if frame is None or frame.layer != DATA_ID else _amount(frame)
        return f"the batch itself held {amount}, before any layer computed"
    if origin.cause == "update":
        names = f" of {listed(origin.bad_updates)}" if origin.bad_updates else ""
        return f"the optimizer's update turned finite weights{names} into infinities or NaN, from finite gradients"
    if origin.cause == "loss":
        return _loss(origin, frame)
    if origin.direction == "backward":
        return _backward(origin, frame)
    return f"{name_of(origin.layer)} turned {_input(frame, 'finite values')} into {_amount(frame)}{_dtype(frame)}"


def _loss(origin: OriginRecord, frame: Frame | None) -> str:
    if origin.direction == "backward":
        scale = "" if origin.loss_scale is None else f", at the loss scale {plain(origin.loss_scale)}"
        return (
            f"the gradient of the loss held {_amount(frame)} where it arrives at the model's output "
            f"{name_of(origin.arrives_at)}{_dtype(frame)}{scale}, although the loss was finite"
        )
    given = "" if frame is None or frame.input_min is None else f" ({_span(frame.input_min, frame.input_max)})"
    made = "NaN" if frame is not None and frame.nans else "infinity"
    return f"the loss function turned finite outputs of the model{given} into {made}"


def _backward(origin: OriginRecord, frame: Frame | None) -> str:
    target = "the gradients of its own weights"
    if origin.arrives_at is not None:
        target = f"the gradient at {name_of(origin.arrives_at)}"
    scale = "" if origin.loss_scale is None else f", at the loss scale {plain(origin.loss_scale)}"
    return (
        f"the backward pass of {name_of(origin.layer)} turned {_input(frame, 'a finite gradient')} into "
        f"{_amount(frame)} in {target}{_dtype(frame)}{scale}"
    )


def name_of(layer_id: str | None) -> str:
    """Return a layer's id in quotes, and code between layers in words."""
    if layer_id is None:
        return "a layer that is not known"
    if layer_id.startswith("(before ") and layer_id.endswith(")"):
        return f"the model's own code before {quoted(layer_id[8:-1])}"
    if layer_id == DATA_ID:
        return "the batch"
    return layer_id if is_code_id(layer_id) else quoted(layer_id)


def _input(frame: Frame | None, what: str) -> str:
    if frame is None or frame.input_min is None:
        return what
    return f"{what} ({_span(frame.input_min, frame.input_max)})"


def _span(low: float | None, high: float | None) -> str:
    return f"{plain(low or 0.0)} to {plain(high or 0.0)}"


def _amount(frame: Frame | None) -> str:
    if frame is None or not frame.nonfinite:
        return "infinities or NaN"
    parts = [counted(frame.infinities, "infinity").replace("infinitys", "infinities")] if frame.infinities else []
    parts += [f"{frame.nans:,} NaN"] if frame.nans else []
    return f"{' and '.join(parts)} (of {frame.elements:,})"


def _dtype(frame: Frame | None) -> str:
    return "" if frame is None or frame.dtype is None else f" in {frame.dtype}"


def _place_in_epoch(origin: OriginRecord) -> str:
    if origin.epoch is None or origin.batch is None:
        return ""
    return f" (epoch {origin.epoch + 1:,}, batch {origin.batch + 1:,})"


def _again(origin: OriginRecord) -> str:
    if origin.times == 1:
        return ""
    return f"; the same was seen {counted(origin.times - 1, 'more time')}, last in step {origin.last_step:,}"
