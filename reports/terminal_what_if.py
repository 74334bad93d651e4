"""`precscope whatif` in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from precscope.advice.wording import counted, plain
from precscope.reports.palette import BOLD, FAINT, LEVELS, SEVERITIES
from precscope.reports.scale_view import best_scale, curve_line, curve_span, headroom, worst_shares
from precscope.reports.terminal_lines import graph, heading, note, paragraph
from precscope.reports.text import bits, percent, printable, shorten

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.format_shares import FormatShares, LayerShares, WhatIfReport
    from precscope.scale_curve import ScaleCurve

__all__ = ["print_what_if", "scale_lines"]

_WIDEST, _MOST_ROWS = 120, 12
_KINDS = {"activation": "output", "gradient": "gradient"}


def print_what_if(report: WhatIfReport, *, show_all: bool = False, console: Console | None = None) -> None:
    """Print what other formats would do, to stdout by default."""
    console = console or Console(highlight=False, markup=False, emoji=False)
    width = min(console.width, _WIDEST)
    for line in _head(report, width):
        console.print(line)
    shown = report.layers if show_all else report.layers[:_MOST_ROWS]
    hidden = f"{len(shown)} of {len(report.layers)} shown · --all" if len(shown) < len(report.layers) else ""
    for line in heading("Layers, most harmed first", width, hidden):
        console.print(line)
    console.print(_table(shown, width), width=width)
    if report.curve is not None:
        for line in (*heading("Loss scale, in float16", width), *scale_lines(report.curve, width)):
            console.print(line)


def scale_lines(curve: ScaleCurve, width: int) -> Iterator[Text]:
    """Yield what the curve says, in lines."""
    flushed, overflowed = worst_shares(curve)
    yield graph("flushed", "predicted", Text(curve_line(flushed), SEVERITIES["warning"][1]))
    yield graph("overflow", "predicted", Text(curve_line(overflowed), SEVERITIES["error"][1]))
    yield graph("", "scale", Text(curve_span(), FAINT))
    yield from note("best fixed", Text(best_scale(curve)), width)
    if (room := headroom(curve)) is not None:
        yield from note("headroom", Text(room), width)


def _head(report: WhatIfReport, width: int) -> Iterator[Text]:
    policy = f" · recorded in {report.policy}" if report.policy else ""
    yield from paragraph(Text.assemble((printable(shorten(report.run, width // 2)), BOLD), (policy, FAINT)), width)
    at = "without a loss scale" if report.loss_scale == 1 else f"at loss scale {plain(report.loss_scale)}"
    text = (
        f"Predicted from the histograms of {counted(report.samples, 'sampled step')}, not measured; gradients {at}. "
        "Shares of the values that are not zero: those that would become zero / keep fewer digits / become infinite. "
        "Where an octave straddles a limit, flushed is the least, the others the most that it can be."
    )
    yield from paragraph(Text(text, FAINT), width)


def _table(layers: tuple[LayerShares, ...], width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style=FAINT, border_style=FAINT)
    table.add_column("layer", no_wrap=True)
    table.add_column("", no_wrap=True)
    known = layers[0].formats if layers else ()
    detailed = len(known) == 1
    heads = ["flushed", "subnormal", "overflow", "headroom"] if detailed else [_short(item.format) for item in known]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    room = max(12, width - 12 - (40 if detailed else 15 * len(known)))
    for layer in layers:
        cells = _detail(layer.formats[0]) if detailed else [_cell(item) for item in layer.formats]
        table.add_row(shorten(printable(layer.layer), room), _KINDS[layer.kind], *cells)
    return table


def _short(name: str) -> str:
    return name.removeprefix("float8_") if name.startswith("float8") else name


def _detail(item: FormatShares) -> list[Text]:
    return [
        _styled(percent(item.flushed.lower), item),
        Text(percent(item.subnormal.upper)),
        _styled(percent(item.overflow.upper), item),
        Text(bits(item.headroom_bits)),
    ]


def _cell(item: FormatShares) -> Text:
    parts = (percent(item.flushed.lower), percent(item.subnormal.upper), percent(item.overflow.upper))
    return _styled("/".join(part.removesuffix("%") for part in parts) + "%", item)


def _styled(text: str, item: FormatShares) -> Text:
    style = LEVELS["bad"][1] if item.overflow.lower > 0 else ""
    return Text(text, LEVELS["attention"][1] if not style and item.flushed.lower > 0.1 else style)
