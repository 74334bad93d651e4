"""The report in the terminal: one screen that answers, then the layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.text import Text

from precscope.advice import Evidence
from precscope.advice.wording import counted
from precscope.formats import FORMATS
from precscope.reports.palette import BOLD, FAINT, LEVELS, PLAIN, SEVERITIES
from precscope.reports.report_view import FindingView, ReportView, report_view
from precscope.reports.terminal_lines import heading, note, paragraph
from precscope.reports.terminal_origin import origin_section
from precscope.reports.terminal_proof import proof_lines
from precscope.reports.terminal_reference import reference_errors
from precscope.reports.terminal_table import layer_table
from precscope.reports.terminal_time import time_and_memory
from precscope.reports.terminal_training import loss_and_scale
from precscope.reports.text import cut, percent, printable, shorten

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.advice.finding import Severity
    from precscope.reader import Run

__all__ = ["print_report", "render_report"]

# What stands on one screen. The rest is a matter of `--all`.
_MOST_LAYERS, _MOST_FINDINGS, _MOST_NOTICES, _MOST_POLICY = 6, 4, 2, 6
_WIDEST = 120
_POLICY_FILE = "# Or as a file: precscope policy RUN_DIR -o policy.yaml"


def print_report(
    run: Run,
    *,
    show_all: bool = False,
    pattern: str | None = None,
    sort: str = "harm",
    console: Console | None = None,
) -> None:
    """Print the report on `run`, to stdout by default; `sort` is a key of `layer_order.ORDERS`.

    Raises:
        PrecScopeError: `pattern` is no regular expression, or matches no layer.
    """
    console = console or Console(highlight=False, markup=False, emoji=False)
    width = min(console.width, _WIDEST)
    view = report_view(Evidence(run), pattern, sort=sort)
    lines = render_report(view, width, show_all=show_all or pattern is not None)
    console.print(Group(*lines), no_wrap=True, crop=True, overflow="ellipsis")


def render_report(view: ReportView, width: int, *, show_all: bool = False) -> Iterator[Text]:
    """Yield the report's lines, at most `width` columns wide. The page has its sections in the same order."""
    yield from _title(view, width)
    yield from _verdict(view, width)
    yield from proof_lines(view.proof, width)
    yield from _policy(view, width, show_all)
    yield from origin_section(view.origin, width, show_all)
    yield from _findings(view, width, show_all)
    yield from _layers(view, width, show_all)
    yield from loss_and_scale(view, width, show_all)
    yield from time_and_memory(view.time, width, show_all)
    yield from reference_errors(view.reference, width, show_all)
    yield from _run(view, width, show_all)


def _title(view: ReportView, width: int) -> Iterator[Text]:
    state_style = PLAIN if view.run.ended_well else SEVERITIES["warning"][1]
    name, state = shorten(view.run.name, width // 2), view.run.state
    yield from paragraph(
        Text.assemble((name, BOLD), "  ", (state, state_style), (f" · started {view.run.started}", FAINT)), width
    )
    if view.run.error is not None:
        yield from paragraph(Text(cut(view.run.error, 3 * width), SEVERITIES["error"][1]), width)


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


def _policy(view: ReportView, width: int, show_all: bool) -> Iterator[Text]:
    if view.policy is None:
        return
    layers, _, how = view.policy.partition("\n\n")
    lines = layers.splitlines()
    shown = lines if show_all or len(lines) <= _MOST_POLICY else lines[: _MOST_POLICY - 1]
    yield from heading("Policy to copy", width)
    for line in shown:
        yield Text(cut(line, width))
    if len(shown) < len(lines):
        yield Text(f"# and {counted(len(lines) - len(shown), 'more layer')}: --all", FAINT)
    if show_all:
        yield Text()
    for line in how.splitlines() if show_all else [_POLICY_FILE]:
        yield Text(cut(line, width), PLAIN if show_all else FAINT)


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
    for risk in finding.risks:
        yield from paragraph(Text(f"In its code: {risk}", FAINT), width, indent)
    if finding.advice is not None:
        yield from paragraph(Text(finding.advice, BOLD), width, Text.assemble(("   → ", style)), indent)


def _layers(view: ReportView, width: int, show_all: bool) -> Iterator[Text]:
    shown = view.rows if show_all else view.rows[:_MOST_LAYERS]
    if not shown:
        return
    yield from heading(f"Layers, {view.order}", width, _hidden(len(shown), len(view.rows)))
    yield from layer_table(shown, width, view.measure)
    yield from paragraph(_legend(view, show_all), width)


def _run(view: ReportView, width: int, show_all: bool) -> Iterator[Text]:
    yield from heading("Run and cost", width)
    for label, line in (("model", view.run.model), ("machine", view.run.machine)):
        if line:
            yield from note(label, Text(line, FAINT), width)
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


def _legend(view: ReportView, show_all: bool) -> Text:
    float16 = FORMATS["float16"]
    parts = ["Pictures: tiny values left, huge ones right, heights logarithmic. headroom: doublings left."]
    if show_all:
        if any(tensor.dtype == "float16" for row in view.rows for tensor in row.tensors):
            parts.append(
                f"float16 rounds what is too small to zero, keeps fewer digits below {float16.smallest_normal:.2g} "
                f"(subnormal, subn.) and turns what exceeds {float16.max:,.0f} into infinity."
            )
        if view.training.scaling != "none":
            parts.append("Gradients are shown as the loss scale multiplies them.")
    if any(tensor.is_sampled for row in view.rows for tensor in row.tensors):
        parts.append("Pictures of large tensors are sampled, all other numbers are exact for the sampled steps.")
    return Text(" ".join(parts), FAINT)
