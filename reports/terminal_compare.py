"""The tables of a comparison in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from precscope.reports.compare_view import CompareView, LayerRow, RunRow, compare_view
from precscope.reports.palette import BOLD, FAINT, LEVELS, PLAIN
from precscope.reports.terminal_bench import STANDINGS
from precscope.reports.terminal_lines import heading, paragraph
from precscope.reports.text import shorten

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from precscope.compare import Comparison

__all__ = ["print_comparison"]

_WIDEST, _WIDE_FROM = 120, 100
_MOST_LAYERS = 12
_COLUMN, _RATIO_COLUMN = 9, 11  # widths of a column of numbers and of one of ratios, their gaps included
_LEAST_NAME = 18
_WITH_DTYPES = 40  # from this width on a layer's dtypes stand beside its name


def print_comparison(comparison: Comparison, *, show_all: bool = False, console: Console | None = None) -> None:
    """Print a comparison, to stdout by default; of the layers only the costliest unless `show_all`."""
    console = console or Console(highlight=False, markup=False, emoji=False)
    width = min(console.width, _WIDEST)
    for part in _parts(compare_view(comparison), width, show_all):
        console.print(part, width=width)


def _parts(view: CompareView, width: int, show_all: bool) -> Iterator[RenderableType]:
    yield from _answer(view, width)
    yield _runs(view, width)
    for standing, sentence in view.sentences:
        sign, style = STANDINGS[standing]
        yield from paragraph(Text(sentence), width, Text.assemble((f"{sign} ", style)), Text("  "))
    if view.results:
        yield from heading("Results at the end", width)
        yield _numbered(view.results, "metric", width)
    if view.layers:
        shown = view.layers if show_all else view.layers[:_MOST_LAYERS]
        hidden = f"{len(shown)} of {len(view.layers)} shown · --all" if len(shown) < len(view.layers) else ""
        yield from heading("Device time by layer, ms in a step", width, hidden)
        yield _layers(shown, view, width)
        yield from _reasons(shown, width)
    yield from heading("Notes", width)
    if (view.layers and len(view.runs) > _fitting(width)) or (view.results and len(view.runs) > _fitting(width, 1, 0)):
        yield Text("Not every run fits beside the others here: --format json has them all.", FAINT)
    for note in view.notes:
        yield from paragraph(Text(note, FAINT), width)


def _answer(view: CompareView, width: int) -> Iterator[Text]:
    sign, style = LEVELS["good" if view.same_work else "attention"]
    first, *rest = view.answer
    yield from paragraph(Text(first, style), width, Text.assemble((f"{sign} ", style)), Text("  "))
    for line in rest:
        yield from paragraph(Text(line), width, Text("  "), Text("    "))


def _plain_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style=FAINT, border_style=FAINT)


def _runs(view: CompareView, width: int) -> Table:
    wide = width >= _WIDE_FROM
    table = _plain_table()
    table.add_column("run", no_wrap=True, overflow="ellipsis")
    table.add_column("policy", no_wrap=True, overflow="ellipsis")
    heads = ["step", "quartiles", "ratio", "ex./s", "memory", "ratio", "loss"]
    for head in heads if wide else [head for head in heads if head not in _ONLY_WIDE]:
        table.add_column(head, justify="right", no_wrap=True)
    for row in view.runs:
        table.add_row(*_run_cells(row, wide))
    return table


_ONLY_WIDE = ("quartiles", "ex./s")


def _run_cells(row: RunRow, wide: bool) -> list[Text]:
    marked = STANDINGS[row.standing][1] if row.standing in ("faster", "slower") else PLAIN
    name = Text.assemble((f"{row.number} ", FAINT), (shorten(row.name, 22 if wide else 14), BOLD))
    cells = [("", name), ("", Text(row.policy)), ("step", Text(row.step)), ("quartiles", Text(row.quartiles, FAINT))]
    cells += [("ratio", Text(row.ratio, marked)), ("ex./s", Text(row.rate)), ("memory", Text(row.memory))]
    cells += [("ratio", Text(row.memory_ratio)), ("loss", Text(row.loss))]
    return [cell for head, cell in cells if wide or head not in _ONLY_WIDE]


def _numbered(rows: Sequence[tuple[str, Sequence[str]]], head: str, width: int) -> Table:
    """Return a table with one column a run, as many as fit."""
    fitting = _fitting(width, 1, 0)
    table = _plain_table()
    table.add_column(head, no_wrap=True, overflow="ellipsis")
    for number, _ in enumerate(rows[0][1][:fitting], start=1):
        table.add_column(f"#{number}", justify="right", no_wrap=True)
    for name, values in rows:
        table.add_row(Text(name, BOLD), *map(Text, values[:fitting]))
    return table


def _layers(rows: Sequence[LayerRow], view: CompareView, width: int) -> Table:
    """Return times and ratios by layer, of as many runs as fit; the reference's own ratio says nothing."""
    shown = range(min(len(view.runs), _fitting(width)))
    others = [place for place in shown if place != view.reference]
    room = max(_LEAST_NAME, width - len(shown) * _COLUMN - len(others) * _RATIO_COLUMN) - 2
    table = _plain_table()
    table.add_column("layer", no_wrap=True, overflow="ellipsis")
    for head in [*(f"#{place + 1}" for place in shown), *(f"#{place + 1} ratio" for place in others)]:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        dtypes = f"  {row.dtypes}" if room >= _WITH_DTYPES else ""
        name = Text.assemble((shorten(row.name, room - len(dtypes)), BOLD), (dtypes, FAINT))
        times, ratios = [row.times[place] for place in shown], [row.ratios[place] for place in others]
        table.add_row(name, *map(Text, times), *map(Text, ratios))
    return table


def _reasons(rows: Sequence[LayerRow], width: int) -> Iterator[Text]:
    for row in rows:
        for reason in row.reasons:
            name = shorten(row.name, width // 2)
            yield from paragraph(Text.assemble((name, BOLD), f" {reason}"), width, Text(""), Text("    "))


def _fitting(width: int, times: int = 1, ratios: int = 1) -> int:
    """Return of how many runs so many columns of times and ratios fit beside a name; one run needs no ratio."""
    each = times * _COLUMN + ratios * _RATIO_COLUMN
    return max(1, (width - _LEAST_NAME + ratios * _RATIO_COLUMN) // each)
