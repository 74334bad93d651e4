"""A frame of the live view, laid out for a terminal of any size: sections that can be drawn one by one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from rich.console import Group
from rich.layout import Layout
from rich.text import Text

from precscope.reports.palette import FAINT
from precscope.reports.terminal_lines import heading
from precscope.reports.terminal_live_layers import live_layers, rows_of_layers
from precscope.reports.terminal_live_parts import (
    compact_lines,
    findings_heading,
    findings_lines,
    fitted,
    footer_lines,
    gauge_lines,
    header_lines,
    layers_heading,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.console import RenderableType

    from precscope.advice.finding import Severity
    from precscope.reports.live_findings import LiveFinding
    from precscope.reports.live_gauges import Gauge
    from precscope.reports.live_view import LiveFrame

__all__ = ["Section", "frame_lines", "layout_of", "sections_of"]

_LEAST_WIDTH, _LEAST_HEIGHT = 60, 18  # below either, single lines in the order of what matters
_TWO_COLUMNS_FROM, _GUTTER = 100, 2
_AIRY_FROM = 30  # rows: from here on sections stand apart
_PICTURES_FROM = 8  # layers: where so many, or all, have room for their pictures, these are shown


@dataclass(frozen=True, eq=False)
class Section:
    """A rectangle of the terminal.

    Attributes:
        name: Unique in a frame.
        width: In columns.
        rows: In rows.
        key: What it shows: a section of the same size with an equal key looks the same.
        lines: Makes its lines; those that are too many or too long are cut.
    """

    name: str
    width: int
    rows: int
    key: object
    lines: Callable[[], Iterable[Text]]

    def render(self) -> RenderableType:
        """Return what rich prints."""
        return Group(*fitted(self.lines(), self.width, self.rows))


def sections_of(frame: LiveFrame, width: int, height: int) -> list[tuple[Section, ...]]:
    """Return the sections of a frame from top to bottom, those of a row from left to right."""
    if width < _LEAST_WIDTH or height < _LEAST_HEIGHT or frame.state == "waiting":
        return [(Section("compact", width, height, frame, partial(compact_lines, frame, width)),)]
    rows = _shared_out(frame, width, height)
    gap = rows.gap
    return [
        (Section("header", width, rows.header, _head(frame), partial(header_lines, frame, width)),),
        _gauges(frame, width, rows),
        (_layers(frame, width, rows),),
        (_findings(frame, width, rows),),
        (Section("free", width, rows.free, None, lambda: ()),),
        (Section("footer", width, rows.footer + gap, (frame.sampling, frame.cost), partial(_footer, frame, gap)),),
    ]


def layout_of(sections: Sequence[tuple[Section, ...]]) -> Layout:
    """Return the sections as a layout, each of them by its name."""
    layout = Layout(name="live")
    layout.split_column(*(_row_layout(row) for row in sections if row[0].rows))
    return layout


def frame_lines(frame: LiveFrame, width: int) -> Iterator[Text]:
    """Yield the whole frame as lines of at most `width` columns, for where there is no screen to fill."""
    if width < _LEAST_WIDTH or frame.state == "waiting":
        yield from fitted(compact_lines(frame, width), width, None)
        return
    lines = [
        *header_lines(frame, width, keys=False),
        *heading("Training", width),
        *gauge_lines((*frame.training, *frame.machine), width),
        *layers_heading(frame, width, len(frame.layers)),
        *live_layers(frame.layers, width, frame.pictures if len(frame.layers) <= len(frame.pictures) else None),
        *findings_heading(frame, width),
        *findings_lines(frame.origin, frame.findings, frame.notices, width),
        Text(),
        *footer_lines(frame),
    ]
    yield from fitted(lines, width, None)


@dataclass(frozen=True)
class _Rows:
    """How many rows each section has, and whether sections stand apart and layers show their pictures."""

    header: int
    gauges: int
    layers: int
    findings: int
    free: int
    footer: int
    gap: int
    with_pictures: bool


def _shared_out(frame: LiveFrame, width: int, height: int) -> _Rows:
    """Give findings what they want, up to half of what is left beside the fixed parts; layers get the rest."""
    gap = 1 if height >= _AIRY_FROM else 0
    header, footer = sum(1 for _ in header_lines(frame, width)), sum(1 for _ in footer_lines(frame))
    columns = len(frame.training), len(frame.machine)
    gauges = (max(columns) if width >= _TWO_COLUMNS_FROM else sum(columns)) + 1 + gap
    left = max(height - header - gauges - footer - gap, 0)
    wanted = len(_finding_lines(frame.origin, frame.findings, frame.notices, width)) + 1 + gap
    number = len(frame.layers)
    fewest = rows_of_layers(min(number, _PICTURES_FROM), with_pictures=True) + 1 + gap
    with_pictures = number > 0 and left - min(wanted, left // 2) >= fewest
    layers_want = rows_of_layers(number, with_pictures) + 1 + gap
    findings = min(wanted, max(left // 2, left - layers_want))
    layers = min(layers_want, left - findings)
    return _Rows(header, gauges, layers, findings, left - findings - layers, footer, gap, with_pictures)


def _head(frame: LiveFrame) -> object:
    return frame.name, frame.state, frame.state_text, frame.step, frame.steps_per_s, frame.model, frame.problem


def _gauges(frame: LiveFrame, width: int, rows: _Rows) -> tuple[Section, ...]:
    if width < _TWO_COLUMNS_FROM:
        return (_gauge_section("Training", (*frame.training, *frame.machine), width, rows),)
    half = (width - _GUTTER) // 2
    gutter = Section("gutter", width - 2 * half, rows.gauges, None, lambda: ())
    left = _gauge_section("Training", frame.training, half, rows)
    return left, gutter, _gauge_section("Machine", frame.machine, half, rows)


def _gauge_section(title: str, gauges: tuple[Gauge, ...], width: int, rows: _Rows) -> Section:
    def lines() -> list[Text]:
        return [*heading(title, width), *gauge_lines(gauges, width)][1 - rows.gap :]

    return Section(title, width, rows.gauges, gauges, lines)


def _layers(frame: LiveFrame, width: int, rows: _Rows) -> Section:
    room = rows.layers - rows.gap - 1
    most = max(room - 2, 0) // 2 if rows.with_pictures else max(room - 1, 0)
    shown, pictures = frame.layers[:most], frame.pictures[:most] if rows.with_pictures else None

    def lines() -> list[Text]:
        return [*layers_heading(frame, width, len(shown)), *live_layers(shown, width, pictures)][1 - rows.gap :]

    return Section("layers", width, rows.layers, (shown, pictures, frame.layers_total), lines)


def _findings(frame: LiveFrame, width: int, rows: _Rows) -> Section:
    def lines() -> list[Text]:
        drawn = [line.copy() for line in _finding_lines(frame.origin, frame.findings, frame.notices, width)]
        return _cut_off([*findings_heading(frame, width), *drawn][1 - rows.gap :], rows.findings)

    key = (frame.origin, frame.findings, frame.measured, frame.notices)
    return Section("findings", width, rows.findings, key, lines)


@lru_cache(maxsize=8)
def _finding_lines(
    origin: str | None,
    findings: tuple[LiveFinding, ...],
    notices: tuple[tuple[Severity, str], ...],
    width: int,
) -> tuple[Text, ...]:
    """Return the lines of the findings; their number is asked for at each frame."""
    return tuple(findings_lines(origin, findings, notices, width))


def _footer(frame: LiveFrame, gap: int) -> list[Text]:
    return [*[Text()] * gap, *footer_lines(frame)]


def _cut_off(lines: list[Text], rows: int) -> list[Text]:
    """Return the lines, the last of them a word on what is missing where there are more than rows."""
    if len(lines) <= rows or rows < 2:
        return lines[:rows]
    return [*lines[: rows - 1], Text("  …", FAINT)]


def _row_layout(row: tuple[Section, ...]) -> Layout:
    if len(row) == 1:
        return Layout(row[0].render(), name=row[0].name, size=row[0].rows)
    layout = Layout(size=row[0].rows)
    layout.split_row(*(Layout(section.render(), name=section.name, size=section.width) for section in row))
    return layout
