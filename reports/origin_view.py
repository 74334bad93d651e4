"""Where a run turned non-finite, as plain data: a sentence, what is known beside it, and the frames, newest last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from precscope.advice.origin_account import main_origin, name_of, origin_sentence, what_is_not_known
from precscope.advice.wording import listed, plain
from precscope.origin_records import is_code_id
from precscope.reports.text import ABSENT, printable

if TYPE_CHECKING:
    from precscope.advice.evidence import Evidence
    from precscope.origin_records import Frame, OriginRecord

__all__ = ["FrameRow", "OriginView", "frame_row", "origin_view"]

_MOST_HISTORY = 5


@dataclass(frozen=True)
class FrameRow:
    """One pass in words; every text is printable.

    Attributes:
        layer: The layer's id.
        direction: "forward", "backward" or "update".
        given: The range of what went in.
        made: The range of what came out, finite values alone.
        nonfinite: How many infinities and NaN came out; empty for none.
        is_origin: Whether this is where it began.
    """

    layer: str
    direction: str
    given: str
    made: str
    nonfinite: str
    is_origin: bool


@dataclass(frozen=True)
class OriginView:
    """The run's main origin, and the others in a line each; every text is printable.

    Attributes:
        is_healthy: Whether it only is a loss scale that was too high for a moment, as happens in a healthy training.
        sentence: What happened, where and when.
        facts: What is known beside it: (label, text).
        frames: The passes that led there, newest last.
        others: Further origins, a sentence each.
    """

    is_healthy: bool
    sentence: str
    facts: tuple[tuple[str, str], ...]
    frames: tuple[FrameRow, ...]
    others: tuple[str, ...]


def origin_view(evidence: Evidence) -> OriginView | None:
    """Return where the run turned non-finite; None where nothing did, as far as was seen."""
    origins = evidence.run.origins
    main = main_origin(origins)
    if main is None:
        return None
    others = sorted((origin for origin in origins if origin is not main), key=lambda origin: origin.step)
    last, is_origin = len(main.frames) - 1, main.cause not in ("weights", "data")
    return OriginView(
        is_healthy=_is_healthy(evidence, main),
        sentence=printable(origin_sentence(main)),
        facts=tuple((label, printable(text)) for label, text in _facts(evidence, main)),
        frames=tuple(frame_row(frame, is_origin and i == last) for i, frame in enumerate(main.frames)),
        others=tuple(printable(origin_sentence(origin)) for origin in others),
    )


def _is_healthy(evidence: Evidence, origin: OriginRecord) -> bool:
    """Return whether the origin is a gradient that a dynamic loss scale had made too large, and nothing worse."""
    stretches = evidence.skipped_stretches
    is_scaled = evidence.loss_scaling == "dynamic" and origin.direction == "backward"
    return is_scaled and bool(stretches) and not any(stretch.is_fault for stretch in stretches)


def _facts(evidence: Evidence, origin: OriginRecord) -> list[tuple[str, str]]:
    facts = []
    if origin.place is not None:
        facts.append(("your code", origin.place))
    facts.append(("before it", _before(origin)))
    history = _history(evidence, origin)
    if history is not None:
        facts.append(("samples", history))
    if origin.kept is not None and (evidence.run.path / origin.kept).is_file():
        command = f"precscope replay {evidence.run.path} --step {origin.step} --model MODULE:FUNCTION"
        facts.append(("kept", f"its batch and the weights before it, in {origin.kept}: {command}"))
    if (unknown := what_is_not_known(origin)) is not None:
        facts.append(("not known", unknown))
    if origin.note is not None:
        facts.append(("note", origin.note))
    return facts


def _before(origin: OriginRecord) -> str:
    """Return whether data and weights were bad already."""
    data = {True: "the batch was finite", False: "the batch was not finite", None: "the batch was not recorded"}
    if origin.bad_weights:
        weights = f"weights were not finite ({listed(origin.bad_weights)})"
    else:
        weights = "all weights were finite"
    finite = "" if origin.finite_step is None else f"; step {origin.finite_step:,} was still finite"
    return f"{data[origin.data_finite]}, {weights}{finite}"


def _history(evidence: Evidence, origin: OriginRecord) -> str | None:
    """Return the largest value of the origin's tensor in the samples before it, newest last."""
    is_forward = origin.direction == "forward"
    layer = origin.layer if is_forward else origin.arrives_at
    if layer is None or layer not in evidence.graph.by_id:
        return None
    tensors = evidence.tensors("activation" if is_forward else "gradient", layer=layer)
    columns = [tensor.index for tensor in tensors]
    before = [index for index, sample in enumerate(evidence.samples) if sample.step < origin.step]
    values = [(evidence.step(index), evidence.absmax[index, columns]) for index in before[-_MOST_HISTORY:]]
    known = [(step, float(np.nanmax(row))) for step, row in values if np.isfinite(row).any()]
    if not known:
        return None
    what = "largest output" if is_forward else f"largest gradient at {name_of(layer)}"
    return f"{what} in the samples before: {', '.join(f'{plain(value)} (step {step:,})' for step, value in known)}"


def frame_row(frame: Frame, is_origin: bool = False) -> FrameRow:
    """Return a frame in words."""
    bad = [f"{frame.infinities:,} Inf"] if frame.infinities else []
    bad += [f"{frame.nans:,} NaN"] if frame.nans else []
    given = _span(frame.input_min, frame.input_max)
    if frame.input_nonfinite:
        given = f"{given} + {frame.input_nonfinite:,} bad" if given != ABSENT else f"{frame.input_nonfinite:,} bad"
    return FrameRow(
        printable(_short(frame.layer)),
        frame.direction,
        given,
        _span(frame.output_min, frame.output_max),
        ", ".join(bad),
        is_origin,
    )


def _short(layer_id: str) -> str:
    return layer_id[1:-1] if is_code_id(layer_id) else layer_id


def _span(low: float | None, high: float | None) -> str:
    return ABSENT if low is None or high is None else f"{plain(low)} to {plain(high)}"
