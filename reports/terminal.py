"""The report in the terminal: one screen that answers, then the layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.text import Text

from precscope.advice import Evidence
from precscope.advice.wording import counted
from precscope.formats import FORMATS
from precscope.reports.palette import BOLD, FAINT, LEVELS, LINE, PLAIN, SEVERITIES
from precscope.reports.report_view import FindingView, ReportView, report_view
from precscope.reports.scale_view import best_scale, headroom, skip_lines
from precscope.reports.terminal_lines import graph, heading, note, paragraph
from precscope.reports.terminal_origin import origin_section
from precscope.reports.terminal_table import layer_table
from precscope.reports.terminal_time import time_and_memory
from precscope.reports.text import cut, percent, printable, shorten, significant
from precscope.reports.training_view import marks, spark

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.advice.finding import Severity
    from precscope.reader import Run

__all__ = ["print_report", "render_report"]

_MOST_LAYERS, _MOST_FINDINGS, _MOST_NOTICES, _MOST_SKIPS = 12, 6, 3, 3
_WIDEST = 120


def print_report(
    run: Run, *, show_all: bool = False, pattern: str | None = None, console: Console | None = None
) -> None:
    """Print the report on `run`, to stdout by default.

    Raises:
        PrecScopeError: `pattern` is no regular expression, or matches no layer.
    """
    console = console or Console(highlight=False, markup=False, emoji=False)
    width = min(console.width, _WIDEST)
    view = report_view(Evidence(run), pattern)
    lines = render_report(view, width, show_all=show_all or pattern is not None)
    console.print(Group(*lines), no_wrap=True, crop=True, overflow="ellipsis")


def render_report(view: ReportView, width: int, *, show_all: bool = False) -> Iterator[Text]:
    """Yield the report's lines, at most `width` columns wide."""
    yield from _run(view, width)
    yield from _verdict(view, width)
    yield from origin_section(view.origin, width, show_all)
    yield from _training(view, width, show_all)
    yield from _findings(view, width, show_all)
    yield from _layers(view, width, show_all)
    yield from time_and_memory(view.time, width, show_all)
    yield from _notes(view, width, show_all)


def _run(view: ReportView, width: int) -> Iterator[Text]:
    state_style = PLAIN if view.run.ended_well else SEVERITIES["warning"][1]
    name, state = shorten(view.run.name, width // 2), view.run.state
    yield from paragraph(
        Text.assemble((name, BOLD), "  ", (state, state_style), (f" · started {view.run.started}", FAINT)), width
    )
    if view.run.error is not None:
        yield from paragraph(Text(cut(view.run.error, 3 * width), SEVERITIES["error"][1]), width)
    for line in (view.run.model, view.run.machine):
        yield from paragraph(Text(line, FAINT), width)


def _verdict(view: ReportView, width: int) -> Iterator[Text]:
    sign, style = LEVELS[view.verdict.level]
    yield Text()
    bar = Text.assemble(("▌ ", style))
    answer = Text.assemble((f"{sign} {printable(view.verdict.sentence)}", style))
    yield from paragraph(answer, width, bar, Text.assemble(bar, "  "))
    if view.loss_scale is not None:
        scale = Text(printable(view.loss_scale.sentence))
        yield from paragraph(scale, width, Text.assemble(bar, "  "))
    if view.origin is not None and not view.origin.is_healthy:
        yield from paragraph(Text(view.origin.sentence), width, Text.assemble(bar, "  "))
    yield from paragraph(Text(printable(view.verdict.basis), FAINT), width, Text.assemble(bar, "  "))


def _training(view: ReportView, width: int, show_all: bool) -> Iterator[Text]:
    training, room = view.training, width - 36
    if not training.loss.steps and not training.loss_scale.steps:
        return
    yield from heading("Training", width)
    for label, series, logarithmic in (("loss", training.loss, False), ("loss scale", training.loss_scale, True)):
        known = [value for value in series.values if value is not None]
        if len(known) == 1:
            yield graph(label, significant(known[0]), Text())
        elif known:
            line = spark(series, training.span, room, logarithmic=logarithmic)
            yield graph(label, significant(known[0]), Text(line, LINE), significant(known[-1]))
    if not any(training.loss_scale.values):
        yield graph(
            "loss scale", "–", Text("none: gradients are not scaled" if training.scaling == "none" else "not known")
        )
    if training.steps_skipped is not None and training.scaling != "none":
        where = Text(marks(training.skipped, training.span, room), SEVERITIES["warning"][1])
        seen = f"{training.steps_seen:,}" + (" sampled" if training.sampled_only else "")
        yield graph("skipped", "", where, f"{training.steps_skipped:,} of {seen}")
    yield from _loss_scale(view, width, show_all)


def _loss_scale(view: ReportView, width: int, show_all: bool) -> Iterator[Text]:
    stretches = view.loss_scale.stretches if view.loss_scale is not None else ()
    for number, line in enumerate(skip_lines(stretches, len(stretches) if show_all else _MOST_SKIPS)):
        yield from note("" if number else "skips", Text(printable(line)), width)
    if view.curve is not None:
        if (room := headroom(view.curve)) is not None:
            yield from note("headroom", Text(f"of the loss scale: {room}"), width)
        yield from note("best fixed", Text(printable(f"scale: {best_scale(view.curve)}")), width)


def _findings(view: ReportView, width: int, show_all: bool) -> Iterator[Text]:
    shown = view.findings if show_all else view.findings[:_MOST_FINDINGS]
    if not shown:
        return
    yield from heading("Findings", width, _hidden(len(shown), len(view.findings)))
    for number, finding in enumerate(shown, start=1):
        yield from _finding(number, finding, width)


def _finding(number: int, finding: FindingView, width: int) -> Iterator[Text]:
    sign, style = _sign(finding.severity)
    indent = Text(" " * 5)
    yield from paragraph(Text(finding.sentence), width, Text.assemble((f"{number:2} ", FAINT), (sign, style)), indent)
    numbers = " · ".join([*finding.numbers, finding.confidence])
    yield from paragraph(Text(numbers, FAINT), width, indent)
    if finding.also:
        yield from paragraph(Text(f"Likewise {finding.also}", FAINT), width, indent)
    if finding.advice is not None:
        yield from paragraph(Text(finding.advice, BOLD), width, Text.assemble(("   → ", style)), indent)


def _layers(view: ReportView, width: int, show_all: bool) -> Iterator[Text]:
    shown = view.rows if show_all else view.rows[:_MOST_LAYERS]
    if not shown:
        return
    order = "worst" if any(row.severity for row in view.rows) else "least headroom"
    yield from heading(f"Layers, {order} first", width, _hidden(len(shown), len(view.rows)))
    yield from layer_table(shown, width)


def _notes(view: ReportView, width: int, show_all: bool) -> Iterator[Text]:
    if view.rows or view.unseen or view.notices or view.cost:
        yield from heading("Notes", width)
    if view.rows:
        yield from note("legend", _legend(view), width)
    for reason in view.unseen if show_all else view.unseen[:_MOST_NOTICES]:
        yield from note("not seen", Text(reason, FAINT), width)
    notices = view.notices if show_all else view.notices[:_MOST_NOTICES]
    for severity, message in notices:
        yield from note("notice", Text.assemble(_sign(severity), cut(message, 4 * width)), width)
    if len(notices) < len(view.notices):
        yield from note("", Text(f"{counted(len(view.notices) - len(notices), 'more notice')}: --all", FAINT), width)
    if view.cost is not None:
        of_run = f", {percent(view.cost.share)} of the run" if view.cost.share is not None else ""
        yield from note("cost", Text(f"{view.cost.total}{of_run}: {', '.join(view.cost.parts)}", FAINT), width)


def _sign(severity: Severity) -> tuple[str, str]:
    sign, style = SEVERITIES[severity]
    return f"{sign} ", style


def _hidden(shown: int, total: int) -> str:
    return f"{shown} of {total} shown · --all" if shown < total else f"{total}"


def _legend(view: ReportView) -> Text:
    float16 = FORMATS["float16"]
    parts = ["A picture shows where a layer's values lie, from tiny (left) to huge (right); heights are logarithmic."]
    if any(tensor.dtype == "float16" for row in view.rows for tensor in row.tensors):
        parts.append(
            f"float16 rounds what is too small to zero, keeps fewer digits below {float16.smallest_normal:.2g} "
            f"(subnormal values, subn.) and turns what exceeds {float16.max:,.0f} into infinity."
        )
    parts.append("headroom: how often the largest value may double until its format ends.")
    if view.training.scaling != "none":
        parts.append("Gradients are shown as the loss scale multiplies them.")
    if any(tensor.is_sampled for row in view.rows for tensor in row.tensors):
        parts.append("Pictures of large tensors are sampled, all other numbers are exact for the sampled steps.")
    return Text(" ".join(parts), FAINT)
