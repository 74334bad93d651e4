"""The findings of `precscope lint` in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from precscope.advice.wording import counted, quoted
from precscope.reports.palette import BOLD, FAINT, LEVELS, SEVERITIES
from precscope.reports.terminal_lines import paragraph
from precscope.reports.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.lint_result import LintFinding, LintResult

__all__ = ["print_lint"]

_WIDEST = 120


def print_lint(result: LintResult, console: Console | None = None) -> None:
    """Print what was found, to stdout by default."""
    console = console or Console(highlight=False, markup=False, emoji=False)
    width = min(console.width, _WIDEST)
    for line in _lines(result, width):
        console.print(line)


def _lines(result: LintResult, width: int) -> Iterator[Text]:
    about = f"{counted(result.layers, 'layer')}, {result.float16_layers:,} in float16"
    yield from paragraph(Text.assemble((printable(result.model), BOLD), (f" · {about}", FAINT)), width)
    yield from _answer(result, width)
    for finding in result.findings:
        yield from _finding(finding, width)
    for reason in result.not_checked:
        yield from paragraph(Text(f"Not checked: {printable(reason)}", FAINT), width)


def _answer(result: LintResult, width: int) -> Iterator[Text]:
    serious = sum(finding.severity != "info" for finding in result.findings)
    sign, style = LEVELS["bad" if result.worst == "error" else "attention" if serious else "good"]
    text = f"{counted(serious, 'finding')} to look at." if serious else "Nothing that mixed precision would break."
    remarks = len(result.findings) - serious
    aside = f" {counted(remarks, 'remark')}." if remarks else ""
    yield from paragraph(Text(f"{sign} {text}{aside}", style), width)
    yield Text()


def _finding(finding: LintFinding, width: int) -> Iterator[Text]:
    sign, style = SEVERITIES[finding.severity]
    where = "" if finding.layer is None else f"{quoted(finding.layer)}: "
    indent = Text("  ")
    first = Text.assemble((f"{sign} ", style))
    yield from paragraph(Text(printable(f"{where}{finding.sentence}")), width, first, indent)
    if finding.place is not None:
        yield from paragraph(Text(printable(finding.place), FAINT), width, indent)
    yield from paragraph(Text(printable(finding.advice), BOLD), width, Text.assemble(("→ ", style)), indent)
    yield from paragraph(Text(finding.check, FAINT), width, indent)
