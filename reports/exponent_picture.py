"""The exponent picture: where a tensor's values lie between zero and infinity, drawn with block characters.

One axis serves all rows: from a few octaves below the smallest float16 number to just beyond the largest. A row in
float16 shows three borders: below the first a value becomes zero, up to the second it is subnormal, beyond the third
infinite. Other 16-bit and wider formats have their limits off this axis, so their rows show none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from precscope.formats import FORMATS, FloatFormat
from precscope.statistics import EXPONENT_MIN

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Band", "Cell", "axis_names", "axis_ticks", "draw", "picture_width"]

Band = Literal["flushed", "subnormal", "normal", "overflow", "border"]

_FLOAT16 = FORMATS["float16"]
#: Where a band of float16 begins.
_BORDERS = (_FLOAT16.subnormal_exponent_min, _FLOAT16.exponent_min, _FLOAT16.exponent_max + 1)
_FIRST, _END = _BORDERS[0] - 6, _BORDERS[2] + 2
_BLOCKS = " ▁▂▃▄▅▆▇█"
#: Two heights a decade: a full block is all values, the lowest one in some thousand or fewer.
_HEIGHTS_PER_DECADE = 2


@dataclass(frozen=True)
class Cell:
    """One character of a picture and the band that it lies in."""

    glyph: str
    band: Band


def picture_width(octaves: int) -> int:
    """Return the width of a picture in characters, `octaves` to a cell."""
    return (_END - _FIRST) // octaves + len(_BORDERS)


def draw(histogram: Sequence[int], float_format: FloatFormat, octaves: int, infinities: int = 0) -> list[Cell]:
    """Return the picture of a histogram, `octaves` to a cell; what lies off the axis is drawn at its end."""
    shows_borders = float_format == _FLOAT16
    total = sum(histogram)
    cells = []
    for exponent in range(_FIRST, _END, octaves):
        if exponent in _BORDERS:
            cells.append(Cell("│" if shows_borders else " ", "border"))
        count = sum(histogram[_bins(exponent, octaves)])
        cells.append(Cell(_block(count, total), _band(exponent, float_format)))
    return [*cells[:-1], Cell("∞", "overflow")] if infinities else cells


def axis_names(octaves: int) -> list[Cell]:
    """Return the line that names the bands of float16."""
    names = ("→ zero", "few digits", "full precision", "∞") if octaves == 1 else ("→0", "fewer", "full precision", "∞")
    bands: tuple[Band, ...] = ("flushed", "subnormal", "normal", "overflow")
    edges = (_FIRST, *_BORDERS, _END)
    line: list[Cell] = []
    for name, band, start, end in zip(names, bands, edges, edges[1:], strict=False):
        line += [Cell("│", "border")] if line else []
        line += [Cell(character, band) for character in name.center((end - start) // octaves)]
    return line


def axis_ticks(octaves: int, *, in_float16: bool) -> str:
    """Return a line of numbers: the borders of float16 and 1, or, for other formats, powers of ten."""
    borders = [
        (_short(_FLOAT16.smallest_subnormal), _BORDERS[0], -2),
        (_short(_FLOAT16.smallest_normal), _BORDERS[1], -2),
        ("1", 0, 0),
        (f"{_FLOAT16.max:.0f}", _BORDERS[2], -5),
    ]
    powers = [("1e-6", -20, 0), ("1e-3", -10, 0), ("1", 0, 0), ("1e3", 10, 0)]  # 2**10 is a thousand, nearly
    line = [" "] * picture_width(octaves)
    for label, exponent, shift in borders if in_float16 else powers:
        start = _column(exponent, octaves) + shift
        line[start : start + len(label)] = label
    return "".join(line)


def _short(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-")


def _column(exponent: int, octaves: int) -> int:
    """Return the column of a border, or of a cell that begins with `exponent`."""
    return (exponent - _FIRST) // octaves + sum(border < exponent for border in _BORDERS)


def _bins(exponent: int, octaves: int) -> slice:
    """Return the bins of a cell; the first and last cells also take what lies off the axis."""
    start = None if exponent == _FIRST else exponent - EXPONENT_MIN
    stop = None if exponent + octaves >= _END else exponent + octaves - EXPONENT_MIN
    return slice(start, stop)


def _block(count: int, total: int) -> str:
    if not count:
        return _BLOCKS[0]
    height = len(_BLOCKS) - 1 + _HEIGHTS_PER_DECADE * math.log10(count / total)
    return _BLOCKS[max(1, round(height))]


def _band(exponent: int, float_format: FloatFormat) -> Band:
    if exponent < float_format.subnormal_exponent_min:
        return "flushed"
    if exponent < float_format.exponent_min:
        return "subnormal"
    return "normal" if exponent <= float_format.exponent_max else "overflow"
