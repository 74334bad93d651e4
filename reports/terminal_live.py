"""A frame of the live view, drawn for a terminal of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.layout import Layout
from rich.text import Text

from precscope.reports.palette import BOLD, FAINT, LEVELS, LINE, PLAIN, SEVERITIES
from precscope.reports.terminal_lines import heading, paragraph
from precscope.reports.terminal_live_layers import compact_layer, live_layers
from precscope.reports.training_view import marks, spark

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import RenderableType

    from precscope.reports.live_findings import LiveFinding
    from precscope.reports.live_gauges import Gauge
    from precscope.reports.live_view import LiveFrame

__all__ = ["STATE_SIGNS", "draw_frame", "fitted", "frame_lines"]

_LEAST_WIDTH, _LEAST_HEIGHT = 60, 18  # below either, single lines in the order of what matters
_TWO_COLUMNS_FROM = 100
_AIRY_FROM = 30  # rows: from here on sections stand apart
_LABEL, _NOW, _MOST_ASIDE = 11, 9, 30
_FINDING_LINES = 2
_KEYS = "q quits"

#: Sign and style of each state of a run.
STATE_SIGNS = {
    "waiting": ("○", LEVELS["unknown"][1]),
    "running": ("●", LEVELS["good"][1]),
    "finished": LEVELS["good"],
    "interrupted": SEVERITIES["warning"],
    "failed": SEVERITIES["error"],
    "killed": SEVERITIES["error"],
}


def draw_frame(frame: LiveFrame, width: int, height: int) -> RenderableType:
    """Return the frame as `width` columns and `height` rows."""
    if width < _LEAST_WIDTH or height < _LEAST_HEIGHT or frame.state == "waiting":
        return Group(*fitted(_compact(frame, width), width, height))
    sections = _Sections(frame, width, height)
    layout = Layout(name="live")
    layout.split_column(*sections.layouts())
    return layout


def frame_lines(frame: LiveFrame, width: int) -> Iterator[Text]:
    """Yield the whole frame as lines of at most `width` columns, for where there is no screen to fill."""
    if width < _LEAST_WIDTH or frame.state == "waiting":
        yield from fitted(_compact(frame, width), width, None)
        return
    yield from fitted(_header(frame, width, keys=False), width, None)
    yield from fitted([*heading("Training", width), *_gauges((*frame.training, *frame.machine), width)], width, None)
    if frame.layers:
        yield from fitted(
            [*_layers_heading(frame, width, len(frame.layers)), *live_layers(frame.layers, width)], width, None
        )
    findings = list(_findings(frame, width))
    yield from fitted([*heading("Findings", width, _findings_aside(frame)), *findings], width, None)
    yield from fitted([Text(), *_footer(frame)], width, None)


class _Sections:
    """Shares out the rows of a terminal among the sections of a frame."""

    def __init__(self, frame: LiveFrame, width: int, height: int) -> None:
        self._frame = frame
        self._width = width
        self._header = list(_header(frame, width))
        self._footer = list(_footer(frame))
        gauges = (*frame.training, *frame.machine)
        self._two_columns = width >= _TWO_COLUMNS_FROM
        self._training_rows = max(len(frame.training), len(frame.machine)) if self._two_columns else len(gauges)
        self._gap = 1 if height >= _AIRY_FROM else 0
        self._share_out(height)

    def layouts(self) -> list[Layout]:
        """Return the sections from top to bottom; their heights add up to the terminal's."""
        width, gap = self._width, self._gap
        shown = self._frame.layers[: max(self._layer_rows - gap - 2, 0)]
        layers = [*_layers_heading(self._frame, width, len(shown)), *live_layers(shown, width)]
        findings = [*heading("Findings", width, _findings_aside(self._frame)), *_findings(self._frame, width)]
        return [
            self._section(self._header, len(self._header)),
            *self._training(),
            self._section(layers[1 - gap :], self._layer_rows),
            self._section(_cut_off(findings[1 - gap :], self._finding_rows), self._finding_rows),
            self._section([], self._free_rows),
            self._section([Text()] * gap + self._footer, len(self._footer) + gap),
        ]

    def _share_out(self, height: int) -> None:
        """Give findings what they want, up to half of what is left beside the fixed parts; layers get the rest."""
        fixed = len(self._header) + self._training_rows + 1 + len(self._footer) + 2 * self._gap
        left = max(height - fixed, 0)
        wanted = sum(1 for _ in _findings(self._frame, self._width)) + 1 + self._gap
        layers_want = len(self._frame.layers) + 2 + self._gap
        self._finding_rows = min(wanted, max(left // 2, left - layers_want))
        self._layer_rows = min(layers_want, left - self._finding_rows)
        self._free_rows = left - self._finding_rows - self._layer_rows

    def _training(self) -> list[Layout]:
        frame, gap = self._frame, self._gap
        if not self._two_columns:
            lines = [*heading("Training", self._width), *_gauges((*frame.training, *frame.machine), self._width)]
            return [self._section(lines[1 - gap :], self._training_rows + 1 + gap)]
        half = (self._width - 3) // 2
        left = [*heading("Training", half), *_gauges(frame.training, half)]
        right = [*heading("Machine", half), *_gauges(frame.machine, half)]
        row = Layout(size=self._training_rows + 1 + gap)
        row.split_row(
            Layout(Group(*fitted(left[1 - gap :], half, None)), size=half),
            Layout(Text(" "), size=self._width - 2 * half),
            Layout(Group(*fitted(right[1 - gap :], half, None)), size=half),
        )
        return [row]

    def _section(self, lines: Sequence[Text], rows: int) -> Layout:
        return Layout(Group(*fitted(lines, self._width, rows)), size=rows or None, visible=rows > 0)


def fitted(lines: Iterable[Text], width: int, height: int | None) -> Iterator[Text]:
    """Yield at most `height` of the lines, each cut to `width` columns."""
    for number, line in enumerate(lines):
        if height is not None and number >= height:
            return
        line.truncate(width, overflow="ellipsis")
        line.no_wrap, line.overflow = True, "crop"
        yield line


def _cut_off(lines: list[Text], rows: int) -> list[Text]:
    """Return the lines, the last of them a word on what is missing where there are more than rows."""
    if len(lines) <= rows or rows < 2:
        return lines[:rows]
    return [*lines[: rows - 1], Text("  …", FAINT)]


def _header(frame: LiveFrame, width: int, keys: bool = True) -> Iterator[Text]:
    line = _state(frame)
    if keys:
        line.truncate(width - len(_KEYS) - 2, overflow="ellipsis")
        line.append(" " * (width - line.cell_len - len(_KEYS))).append(_KEYS, FAINT)
    yield line
    if frame.model:
        yield Text(frame.model, FAINT)
    if frame.problem is not None:
        lines = list(paragraph(Text(frame.problem, SEVERITIES["error"][1]), width))
        yield from lines[:_FINDING_LINES]


def _state(frame: LiveFrame) -> Text:
    sign, style = STATE_SIGNS[frame.state]
    step = "" if frame.step is None else f" · step {frame.step:,}"
    return Text.assemble((f"{sign} ", style), (frame.name, BOLD), f"  {frame.state_text}", step)


def _gauges(gauges: Iterable[Gauge], width: int) -> Iterator[Text]:
    gauges = tuple(gauges)
    aside = min(max((len(gauge.aside) for gauge in gauges), default=0), _MOST_ASIDE, width // 2)
    room = max(width - _LABEL - _NOW - aside - 4, 4)
    for gauge in gauges:
        style = BOLD if gauge.severity is None else SEVERITIES[gauge.severity][1]
        line = _course(gauge, room)
        line.pad_right(room - line.cell_len)
        parts = (f"{gauge.label:<{_LABEL}}", FAINT), (f"{gauge.now:>{_NOW}}", style), "  ", line, "  "
        text = Text.assemble(*parts, (gauge.aside, FAINT))
        text.rstrip()
        yield text


def _course(gauge: Gauge, room: int) -> Text:
    if gauge.kind == "growth":
        return Text(marks(gauge.series, gauge.span, room), SEVERITIES["warning"][1])
    if sum(value is not None for value in gauge.series.values) < 2:
        return Text()
    return Text(spark(gauge.series, gauge.span, room, logarithmic=gauge.kind == "logarithm"), LINE)


def _layers_heading(frame: LiveFrame, width: int, shown: int) -> Iterator[Text]:
    total = frame.layers_total
    aside = f"{shown} of {total:,}" if shown < total else f"{total:,}" if total else "none recorded yet"
    yield from heading("Layers at the last sample, worst first", width, aside)


def _findings_aside(frame: LiveFrame) -> str:
    return "" if any(finding.is_current for finding in frame.findings) else "none in the last samples"


def _findings(frame: LiveFrame, width: int) -> Iterator[Text]:
    """Yield the findings, those of the last samples with what to do, then what the session had to say."""
    for finding in frame.findings:
        yield from _finding(finding, width) if finding.is_current else _past_finding(finding)
    for severity, message in frame.notices:
        sign, style = SEVERITIES[severity]
        lines = paragraph(Text(message, FAINT), width, Text(f"{sign} ", style), Text("  "))
        yield from list(lines)[:_FINDING_LINES]


def _finding(finding: LiveFinding, width: int) -> Iterator[Text]:
    sign, style = SEVERITIES[finding.severity]
    sentence = Text(f"{finding.sentence} {finding.also}".strip())
    yield from list(paragraph(sentence, width, Text(f"{sign} ", style), Text("  ")))[:_FINDING_LINES]
    if finding.advice is not None:
        yield from list(paragraph(Text(finding.advice, BOLD), width, Text("  → ", style), Text("    ")))[
            :_FINDING_LINES
        ]


def _past_finding(finding: LiveFinding) -> Iterator[Text]:
    sign, _ = SEVERITIES[finding.severity]
    yield Text(f"{sign} until step {finding.last_step:,}: {finding.sentence}", FAINT)


def _footer(frame: LiveFrame) -> Iterator[Text]:
    for label, text in (("sampling", frame.sampling), ("own cost", frame.cost)):
        if text:
            yield Text.assemble((f"{label:<{_LABEL}}", FAINT), (text, FAINT))


def _compact(frame: LiveFrame, width: int) -> Iterator[Text]:
    """Yield single lines in the order of what matters; a small terminal shows the first of them."""
    yield _state(frame)
    if frame.problem is not None:
        yield Text(frame.problem, SEVERITIES["error"][1])
    gauges = list(frame.training)
    yield from (_small_gauge(gauge, width) for gauge in gauges[:1])
    for finding in [finding for finding in frame.findings if finding.is_current][:1]:
        sign, style = SEVERITIES[finding.severity]
        yield Text.assemble((f"{sign} ", style), finding.sentence)
    yield from (compact_layer(layer, width) for layer in frame.layers[:1])
    yield from (_small_gauge(gauge, width) for gauge in (*gauges[1:], *frame.machine))
    yield from (compact_layer(layer, width) for layer in frame.layers[1:])


def _small_gauge(gauge: Gauge, width: int) -> Text:
    style = PLAIN if gauge.severity is None else SEVERITIES[gauge.severity][1]
    text = Text.assemble((f"{gauge.label:<{_LABEL}}", FAINT), (gauge.now, style), " ")
    text.append_text(_course(gauge, max(width - text.cell_len, 1)))
    text.rstrip()
    return text
