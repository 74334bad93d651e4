"""The parts of a frame of the live view as lines: state, gauges, findings, footer; and all of it in single lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precscope.advice.wording import plain
from precscope.reports.live_findings import WINDOW
from precscope.reports.palette import BOLD, FAINT, LEVELS, LINE, PLAIN, SEVERITIES
from precscope.reports.terminal_lines import heading, paragraph
from precscope.reports.terminal_live_layers import compact_layer
from precscope.reports.training_view import marks, spark

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from precscope.advice.finding import Severity
    from precscope.reports.live_findings import LiveFinding
    from precscope.reports.live_gauges import Gauge
    from precscope.reports.live_view import LiveFrame

__all__ = [
    "STATE_SIGNS",
    "compact_lines",
    "findings_heading",
    "findings_lines",
    "fitted",
    "footer_lines",
    "gauge_lines",
    "header_lines",
    "layers_heading",
]

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


def fitted(lines: Iterable[Text], width: int, height: int | None) -> Iterator[Text]:
    """Yield at most `height` of the lines, each cut to `width` columns."""
    for number, line in enumerate(lines):
        if height is not None and number >= height:
            return
        line.truncate(width, overflow="ellipsis")
        line.no_wrap, line.overflow = True, "crop"
        yield line


def _short(lines: Iterable[Text], width: int) -> Iterator[Text]:
    """Yield the first lines of a paragraph, the last of them with an ellipsis where there are more."""
    shown = list(lines)
    if len(shown) > _FINDING_LINES:
        shown = shown[:_FINDING_LINES]
        shown[-1].truncate(width - 1)
        shown[-1].append("…")
    yield from shown


def header_lines(frame: LiveFrame, width: int, keys: bool = True) -> Iterator[Text]:
    """Yield the run's name and state, its model, and what went wrong; the first line ends with the keys."""
    line = _state(frame)
    if keys:
        line.truncate(width - len(_KEYS) - 2, overflow="ellipsis")
        line.append(" " * (width - line.cell_len - len(_KEYS))).append(_KEYS, FAINT)
    yield line
    if frame.model:
        yield Text(frame.model, FAINT)
    if frame.problem is not None:
        yield from _short(paragraph(Text(frame.problem, SEVERITIES["error"][1]), width), width)


def _state(frame: LiveFrame) -> Text:
    sign, style = STATE_SIGNS[frame.state]
    step = "" if frame.step is None else f" · step {frame.step:,}"
    pace = "" if frame.steps_per_s is None else f" · {plain(frame.steps_per_s)} steps/s"
    return Text.assemble((f"{sign} ", style), (frame.name, BOLD), f"  {frame.state_text}", step, pace)


def gauge_lines(gauges: Iterable[Gauge], width: int) -> Iterator[Text]:
    """Yield a line for each gauge: its last value, its course, and what else there is to say."""
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


def layers_heading(frame: LiveFrame, width: int, shown: int) -> Iterator[Text]:
    """Yield an empty line and the title of the layers, with how many of them are shown."""
    total = frame.layers_total
    aside = f"{shown} of {total:,}" if shown < total else f"{total:,}" if total else "none recorded yet"
    yield from heading("Layers at the last sample, worst first", width, aside)


def findings_heading(frame: LiveFrame, width: int) -> Iterator[Text]:
    """Yield an empty line and the title of the findings, with whether they were measured against float32."""
    none = "" if any(finding.is_current for finding in frame.findings) else "none"
    aside = " · ".join(part for part in (none, frame.measured) if part)
    yield from heading(f"Findings in the last {WINDOW} samples", width, aside)


def findings_lines(
    origin: str | None, findings: Iterable[LiveFinding], notices: Iterable[tuple[Severity, str]], width: int
) -> Iterator[Text]:
    """Yield where values turned bad first, the findings, with what to do, then what the session had to say."""
    if origin is not None:
        sign, style = SEVERITIES["error"]
        text = Text.assemble(("origin: ", BOLD), origin)
        yield from _short(paragraph(text, width, Text(f"{sign} ", style), Text("  ")), width)
    for finding in findings:
        yield from _finding(finding, width) if finding.is_current else _past_finding(finding)
    for severity, message in notices:
        sign, style = SEVERITIES[severity]
        lines = paragraph(Text(message, FAINT), width, Text(f"{sign} ", style), Text("  "))
        yield from _short(lines, width)


def _finding(finding: LiveFinding, width: int) -> Iterator[Text]:
    sign, style = SEVERITIES[finding.severity]
    sentence = Text(f"{finding.sentence} {finding.also}".strip())
    yield from _short(paragraph(sentence, width, Text(f"{sign} ", style), Text("  ")), width)
    if finding.advice is not None:
        yield from _short(paragraph(Text(finding.advice, BOLD), width, Text("  → ", style), Text("    ")), width)


def _past_finding(finding: LiveFinding) -> Iterator[Text]:
    sign, _ = SEVERITIES[finding.severity]
    yield Text(f"{sign} until step {finding.last_step:,}: {finding.sentence}", FAINT)


def footer_lines(frame: LiveFrame) -> Iterator[Text]:
    """Yield how it is sampled and what PrecScope cost, where that is known."""
    for label, text in (("sampling", frame.sampling), ("own cost", frame.cost)):
        if text:
            yield Text.assemble((f"{label:<{_LABEL}}", FAINT), (text, FAINT))


def compact_lines(frame: LiveFrame, width: int) -> Iterator[Text]:
    """Yield single lines in the order of what matters; a small terminal shows the first of them."""
    yield _state(frame)
    if frame.problem is not None:
        yield Text(frame.problem, SEVERITIES["error"][1])
    gauges = list(frame.training)
    yield from (_small_gauge(gauge, width) for gauge in gauges[:1])
    serious = [finding for finding in frame.findings if finding.is_current and finding.severity != "info"]
    for finding in serious[:1]:
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
