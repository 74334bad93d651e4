"""The live view where there is no screen to fill: a few lines at the bottom of a terminal, or a log in a pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precscope.reports.palette import BOLD, FAINT, LINE, PLAIN, SEVERITIES
from precscope.reports.terminal_live_layers import compact_layer
from precscope.reports.terminal_live_parts import STATE_SIGNS, fitted
from precscope.reports.training_view import spark

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.reports.live_findings import LiveFinding
    from precscope.reports.live_gauges import Gauge
    from precscope.reports.live_view import LiveFrame

__all__ = ["LiveLog", "panel_lines"]

_SPARK = 16
_SPARK_FROM = 90  # columns


def panel_lines(frame: LiveFrame, width: int, rows: int) -> list[Text]:
    """Return the frame in `rows` lines of `width` columns, 1 to 3: the numbers, the worst layers, the worst finding."""
    lines = [_numbers(frame, width), _layers(frame, width), _worst(frame)][:rows]
    return list(fitted(lines, width, rows))


class LiveLog:
    """Turns frames into lines of a log: the state now and then, and each finding once.

    Args:
        interval_s: Time between two lines on the state.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._next_s: float | None = None
        self._last = ""
        self._told: set[str] = set()

    def lines(self, frame: LiveFrame, now_s: float, is_last: bool = False) -> Iterator[str]:
        """Yield the lines that are due at the monotonic time `now_s`."""
        serious = [finding for finding in frame.findings if finding.is_current and finding.severity != "info"]
        for finding in serious:
            if self._key(finding) in self._told:
                continue
            self._told.add(self._key(finding))
            advice = "" if finding.advice is None else f" → {finding.advice}"
            yield f"{frame.name}: {finding.severity} at step {finding.last_step:,}: {finding.sentence}{advice}"
        for severity, message in frame.notices:
            if message not in self._told:
                self._told.add(message)
                yield f"{frame.name}: {severity}: {message}"
        line = self._state(frame)
        is_due = self._next_s is None or now_s >= self._next_s or is_last
        if is_due and line != self._last:
            self._last, self._next_s = line, now_s + self._interval_s
            yield line

    @staticmethod
    def _key(finding: LiveFinding) -> str:
        return f"{finding.severity} {finding.rule} {finding.layer}"

    @staticmethod
    def _state(frame: LiveFrame) -> str:
        parts = [frame.state_text]
        if frame.step is not None:
            parts.append(f"step {frame.step:,}")
        parts += [f"{gauge.label} {gauge.now}" for gauge in (*frame.training, *frame.machine) if gauge.series.steps]
        if frame.layers:
            parts.append(f"worst layer {compact_layer(frame.layers[0], 10_000).plain.strip()}")
        if frame.problem:
            parts.append(frame.problem)
        return f"{frame.name}: {', '.join(parts)}"


def _numbers(frame: LiveFrame, width: int) -> Text:
    sign, style = STATE_SIGNS[frame.state]
    step = frame.state_text if frame.step is None else f"step {frame.step:,}"
    line = Text.assemble(("── ", FAINT), (f"{sign} ", style), ("PrecScope", BOLD), f"  {step}")
    for gauge in (*frame.training, *frame.machine):
        if not gauge.series.steps:
            continue
        part = _gauge(gauge, width)
        if line.cell_len + part.cell_len + 4 > width:
            break
        line.append(" · ", FAINT).append_text(part)
    if frame.state_text and width - line.cell_len > 2:
        line.append(" " + "─" * (width - line.cell_len - 1), FAINT)
    return line


def _gauge(gauge: Gauge, width: int) -> Text:
    style = PLAIN if gauge.severity is None else SEVERITIES[gauge.severity][1]
    text = Text.assemble((f"{gauge.label} ", FAINT), (gauge.now, style))
    if gauge.label == "loss" and width >= _SPARK_FROM and len(gauge.series.steps) > 1:
        text.append(" ").append(spark(gauge.series, gauge.span, _SPARK), LINE)
    return text


def _layers(frame: LiveFrame, width: int) -> Text:
    line = Text("   worst layers  ", FAINT)
    if not frame.layers:
        return line.append("no step sampled yet", FAINT)
    for number, layer in enumerate(frame.layers):
        part = compact_layer(layer, width // 2)
        if number and line.cell_len + part.cell_len + 2 > width:
            break
        line.append_text(part).append("  ")
    line.rstrip()
    return line


def _worst(frame: LiveFrame) -> Text:
    for finding in frame.findings:
        if finding.is_current and finding.severity != "info":
            sign, style = SEVERITIES[finding.severity]
            return Text.assemble((f" {sign} ", style), finding.sentence)
    for severity, message in frame.notices:
        sign, style = SEVERITIES[severity]
        return Text.assemble((f" {sign} ", style), message)
    return Text("   no warning in the last samples" if frame.layers else "", FAINT)
