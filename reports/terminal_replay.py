"""A train step that was run again, in the terminal: its frames, newest last."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from precscope.advice.origin_account import origin_sentence
from precscope.advice.wording import counted, plain
from precscope.reports.origin_view import frame_row
from precscope.reports.palette import BOLD, FAINT, LEVELS
from precscope.reports.terminal_lines import note, paragraph
from precscope.reports.terminal_origin import frames_table
from precscope.reports.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.replayed_step import ReplayedStep

__all__ = ["print_replay"]

_WIDEST = 120


def print_replay(replayed: ReplayedStep, most: int | None, console: Console | None = None) -> None:
    """Print the step, to stdout by default.

    Args:
        replayed: The step.
        most: How many frames to show, up to the first bad one; None for every frame.
        console: Where to print.
    """
    console = console or Console(highlight=False, markup=False, emoji=False)
    width = min(console.width, _WIDEST)
    for line in _lines(replayed, most, width):
        console.print(line, no_wrap=True, crop=True, overflow="ellipsis")


def _lines(replayed: ReplayedStep, most: int | None, width: int) -> Iterator[Text]:
    about = f" · loss {_loss(replayed.loss)}"
    if replayed.loss_scale is not None:
        about += f" · loss scale {plain(replayed.loss_scale)}"
    title = f"Train step {replayed.step:,} of {printable(replayed.run)}"
    yield from paragraph(Text.assemble((title, BOLD), (about, FAINT)), width)
    sign, style = LEVELS["good" if replayed.origin is None else "bad"]
    told = "Run again, all values were finite, forward and backward."
    if replayed.origin is not None:
        told = origin_sentence(replayed.origin)
    yield from paragraph(Text(f"{sign} {printable(told)}", style), width)
    yield Text()
    yield from _frames(replayed, most, width)
    if replayed.origin is not None and replayed.origin.place is not None:
        yield from note("your code", Text(printable(replayed.origin.place)), width)
    for number, text in enumerate(replayed.notes):
        yield from note("" if number else "note", Text(printable(text), FAINT), width)


def _frames(replayed: ReplayedStep, most: int | None, width: int) -> Iterator[Text]:
    rows = [frame_row(frame, i == replayed.origin_position) for i, frame in enumerate(replayed.frames)]
    end = len(rows) if replayed.origin_position is None or most is None else replayed.origin_position + 1
    begin = 0 if most is None else max(0, end - most)
    if begin:
        yield Text(f"  {counted(begin, 'earlier frame')}: --all", FAINT)
    yield from frames_table(rows[begin:end], width)
    if end < len(rows):
        yield Text(f"  {counted(len(rows) - end, 'later frame')}: --all", FAINT)


def _loss(loss: float | None) -> str:
    if loss is None:
        return "not seen"
    return plain(loss) if math.isfinite(loss) else str(loss)
