"""Where a run turned non-finite, in the terminal: a sentence, the frames, and what is known beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precscope.reports.palette import BOLD, FAINT, SEVERITIES
from precscope.reports.terminal_lines import heading, note, paragraph
from precscope.reports.text import shorten

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from precscope.reports.origin_view import FrameRow, OriginView

__all__ = ["frames_table", "origin_section"]

_DIRECTION, _RANGE, _MOST_LAYER = 8, 19, 40
_MOST_OTHERS = 1


def origin_section(view: OriginView | None, width: int, show_all: bool) -> Iterator[Text]:
    """Yield the section; nothing where all was finite, or only a loss scale had been too high for a moment."""
    if view is None or (view.is_healthy and not show_all):
        return
    yield from heading("Where it turned non-finite", width)
    if view.is_healthy:  # else the verdict says it
        yield from paragraph(Text(view.sentence), width)
    yield from frames_table(view.frames, width)
    for label, text in view.facts:
        yield from note(label, Text(text), width)
    for number, text in enumerate(view.others if show_all else view.others[:_MOST_OTHERS]):
        yield from note("" if number else "also", Text(text, FAINT), width)
    if not show_all and len(view.others) > _MOST_OTHERS:
        yield from note("", Text(f"{len(view.others) - _MOST_OTHERS} more: --all", FAINT), width)


def frames_table(rows: Sequence[FrameRow], width: int) -> Iterator[Text]:
    """Yield a line for each frame, newest last, in at most `width` columns."""
    longest = max((len(row.layer) for row in rows), default=0)
    bad = max((len(row.nonfinite) for row in rows), default=0)
    spans = max((len(text) for row in rows for text in (row.given, row.made)), default=0)
    span = min(max(spans, 3), _RANGE)
    layer = max(min(longest, _MOST_LAYER, width - _DIRECTION - 2 * span - bad - 10), 6)
    yield Text(f"  {'pass':<{_DIRECTION}} {'layer':<{layer}} {'in':>{span}}    {'out':>{span}}", FAINT)
    for row in rows:
        style = SEVERITIES["error"][1] if row.is_origin else ""
        line = Text.assemble(
            ("▸ " if row.is_origin else "  ", style),
            (f"{row.direction:<{_DIRECTION}} ", FAINT),
            (f"{shorten(row.layer, layer):<{layer}} ", BOLD if row.is_origin else ""),
            f"{row.given:>{span}} → {row.made:>{span}}",
            (f"  {row.nonfinite}" if row.nonfinite else "", style or SEVERITIES["warning"][1]),
        )
        line.rstrip()
        yield line
