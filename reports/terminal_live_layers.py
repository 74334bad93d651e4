"""The layers of the live view: a row each, with the headroom at the last samples as a row of blocks."""

from __future__ import annotations

import math
from itertools import groupby
from typing import TYPE_CHECKING

from rich.text import Text

from precscope.reports.exponent_picture import Cell, axis_ticks, picture_width
from precscope.reports.palette import BANDS, BOLD, FAINT, LINE, PLAIN, SEVERITIES
from precscope.reports.text import ABSENT, bits, compact, percent, shorten
from precscope.worker_tail import RECENT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from precscope.reports.live_layers import LayerNow
    from precscope.reports.live_pictures import LayerPictures

__all__ = ["compact_layer", "live_layers", "rows_of_layers"]

#: A block says how much headroom there was: below 1 bit (an error), 2 (a warning), 4, 8, 12, or more.
_LEVELS = ((1.0, "▁", SEVERITIES["error"][1]), (2.0, "▂", SEVERITIES["warning"][1]), (4.0, "▃", LINE))
_HIGHER = ((8.0, "▄"), (12.0, "▅"), (math.inf, "▆"))
_HEADROOM, _TREND, _END, _SUBNORMAL, _BAD = 8, 8, 11, 6, 7
_WIDE_FROM = 100
#: The line of pictures: two octaves to a cell, as the pictures are drawn.
_OCTAVES = 2
_OUTPUT, _GRADIENT = "    output ", "   gradient "


def rows_of_layers(layers: int, with_pictures: bool) -> int:
    """Return how many rows so many layers take, the header among them."""
    return layers * (2 if with_pictures else 1) + (2 if with_pictures else 1) if layers else 0


def live_layers(
    layers: Sequence[LayerNow], width: int, pictures: Sequence[LayerPictures | None] | None = None
) -> Iterator[Text]:
    """Yield a header and a line for each layer, `width` columns wide; with `pictures`, a line of them below each."""
    if not layers:
        return
    is_wide = width >= _WIDE_FROM
    history = RECENT if is_wide else RECENT // 2
    widths = [_HEADROOM, history, _TREND, *([_END] if is_wide else []), _SUBNORMAL, _BAD]
    name = width - sum(widths) - len(widths)
    heads = ["headroom", f"{history} samples", "bits/1k", *(["overflow at"] if is_wide else []), "subn.", "inf/NaN"]
    yield _line(Text("  layer", FAINT), [Text(head, FAINT) for head in heads], name, widths)
    if pictures is not None:
        yield _axes(layers)
    for place, layer in enumerate(layers):
        cells = [
            Text(bits(layer.headroom_bits), _style(layer, PLAIN)),
            _history(layer, history),
            _trend(layer),
            *([_end(layer)] if is_wide else []),
            Text(percent(layer.subnormal_share), PLAIN if layer.subnormal_share else FAINT),
            Text(compact(layer.bad), _style(layer, PLAIN) if layer.bad else FAINT),
        ]
        yield _line(_name(layer, name), cells, name, widths)
        if pictures is not None:
            yield _pictures(pictures[place] if place < len(pictures) else None)


def compact_layer(layer: LayerNow, width: int) -> Text:
    """Return a layer in one short line."""
    state = f"{compact(layer.bad)} inf/NaN" if layer.bad else bits(layer.headroom_bits)
    sign, style = SEVERITIES[layer.severity] if layer.severity else (" ", PLAIN)
    name = shorten(layer.name, max(width - len(state) - 3, 8))
    return Text.assemble((f"{sign} ", style), (name, BOLD), (f" {state}", _style(layer, PLAIN)))


def _axes(layers: Sequence[LayerNow]) -> Text:
    ticks = axis_ticks(_OCTAVES, in_float16=any(layer.compute_dtype == "float16" for layer in layers))
    return Text(f"{'':{len(_OUTPUT)}}{ticks}{'':{len(_GRADIENT)}}{ticks}".rstrip(), FAINT)


def _pictures(pictures: LayerPictures | None) -> Text:
    if pictures is None:
        return Text(f"{_OUTPUT}not read yet", FAINT)
    output = _picture(pictures.output)
    output.pad_right(picture_width(_OCTAVES) - output.cell_len)
    line = Text.assemble((_OUTPUT, FAINT), output, (_GRADIENT, FAINT), _picture(pictures.gradient))
    line.rstrip()
    return line


def _picture(cells: Sequence[Cell] | None) -> Text:
    if cells is None:
        return Text(ABSENT, FAINT)
    if not cells:
        return Text("nothing finite", BANDS["overflow"])
    return _grouped((cell.glyph, BANDS[cell.band]) for cell in cells)


def _grouped(cells: Iterable[tuple[str, str]]) -> Text:
    """Return characters, each with its style, as few spans: that is what drawing takes time for."""
    text = Text()
    for style, run in groupby(cells, key=lambda cell: cell[1]):
        text.append("".join(glyph for glyph, _ in run), style)
    return text


def _line(name: Text, cells: Sequence[Text], name_width: int, widths: Sequence[int]) -> Text:
    name.truncate(name_width)
    name.pad_right(name_width - name.cell_len)
    for place, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        if place == 1:  # the history; all others are numbers
            cell.pad_right(width - cell.cell_len)
        else:
            cell.pad_left(width - cell.cell_len)
    line = Text(" ").join([name, *cells])
    line.rstrip()
    return line


def _name(layer: LayerNow, room: int) -> Text:
    sign, style = SEVERITIES[layer.severity] if layer.severity else (" ", PLAIN)
    name = Text.assemble((f"{sign} ", style), (shorten(layer.name, room - 2), BOLD))
    kind = f"  {layer.type} {layer.compute_dtype}"
    return name.append(kind, FAINT) if name.cell_len + len(kind) <= room else name


def _history(layer: LayerNow, room: int) -> Text:
    return _grouped(map(_block, layer.history[-room:]))


def _block(headroom: float | None) -> tuple[str, str]:
    if headroom is None:
        return " ", PLAIN
    if math.isinf(headroom):
        return "×", SEVERITIES["error"][1]
    for limit, glyph, style in _LEVELS:
        if headroom < limit:
            return glyph, style
    return next(glyph for limit, glyph in _HIGHER if headroom < limit), LINE


def _trend(layer: LayerNow) -> Text:
    slope = layer.bits_per_1000_steps
    if slope is None:
        return Text(ABSENT, FAINT)
    # Without a sign where it rounds to nothing; U+2212 is as wide as the plus.
    text = f"{abs(slope):.1f}" if abs(slope) < 100 else f"{abs(slope):,.0f}"
    sign = "" if float(text.replace(",", "")) == 0 else "−" if slope < 0 else "+"
    return Text(f"{sign}{text}", PLAIN if slope < 0 else FAINT)


def _end(layer: LayerNow) -> Text:
    if layer.overflow_step is None:
        return Text(ABSENT, FAINT)
    return Text(f"≈{compact(layer.overflow_step)}", _style(layer, PLAIN))


def _style(layer: LayerNow, otherwise: str) -> str:
    return SEVERITIES[layer.severity][1] if layer.severity else otherwise
