"""The table of a bench in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from precscope.reports.bench_view import BenchRow, BenchView, Standing, bench_view
from precscope.reports.palette import BOLD, FAINT, LEVELS, PLAIN
from precscope.reports.terminal_lines import paragraph

if TYPE_CHECKING:
    from precscope.bench_result import BenchResult

__all__ = ["STANDINGS", "print_bench"]

_WIDEST, _WIDE_FROM = 120, 100

#: Sign and style of how a policy or run stands.
STANDINGS: dict[Standing, tuple[str, str]] = {
    "faster": LEVELS["good"],
    "slower": LEVELS["attention"],
    "same": ("=", FAINT),
    "failed": LEVELS["bad"],
    "unknown": ("•", FAINT),
}


def print_bench(result: BenchResult, console: Console | None = None) -> None:
    """Print a bench, to stdout by default."""
    console = console or Console(highlight=False, markup=False, emoji=False)
    width = min(console.width, _WIDEST)
    view = bench_view(result)
    for line in paragraph(Text(view.title, BOLD), width):
        console.print(line)
    for line in paragraph(Text(view.machine, FAINT), width):
        console.print(line)
    console.print(_table(view, width), width=width)
    for standing, sentence in view.sentences:
        sign, style = STANDINGS[standing]
        for line in paragraph(Text(sentence), width, Text.assemble((f"{sign} ", style)), Text("  ")):
            console.print(line)
    for note in view.notes:
        for line in paragraph(Text(note, FAINT), width):
            console.print(line)


def _table(view: BenchView, width: int) -> Table:
    wide = width >= _WIDE_FROM
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style=FAINT, border_style=FAINT)
    table.add_column("policy", no_wrap=True)
    heads = ["step", "quartiles", "/ float32", "examples/s", "memory", "/ float32", "compile"]
    for head in heads if wide else [head for head in heads if head not in ("examples/s", "compile")]:
        table.add_column(head, justify="right", no_wrap=True)
    for row in view.rows:
        table.add_row(*_cells(row, wide))
    return table


def _cells(row: BenchRow, wide: bool) -> list[Text]:
    _, style = STANDINGS[row.standing]
    marked = style if row.standing in ("faster", "slower") else PLAIN
    cells = [
        Text(row.policy, BOLD),
        Text(row.step),
        Text(row.quartiles, FAINT),
        Text(row.ratio, marked),
        Text(row.rate),
        Text(row.memory),
        Text(row.memory_ratio),
        Text(row.compile, FAINT),
    ]
    return cells if wide else [cell for place, cell in enumerate(cells) if place not in (4, 7)]
