"""The table of layers in the terminal, with an exponent picture in each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from precscope.formats import FORMATS
from precscope.reports.exponent_picture import Cell, axis_names, axis_ticks, draw, picture_width
from precscope.reports.names import fit_names
from precscope.reports.palette import BANDS, BOLD, FAINT, PLAIN, SEVERITIES
from precscope.reports.text import bits, compact, cut, percent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from precscope.advice.finding import Severity
    from precscope.reports.layer_rows import LayerRow, TensorRow

__all__ = ["layer_table"]

_WIDE_FROM = 112  # columns: from here on a picture has one octave to a cell, below it two
_LABEL, _HEADROOM, _SUBNORMAL, _BAD = 8, 8, 6, 7
_LEAST_NAME = 8


@dataclass(frozen=True)
class _Columns:
    """Widths: of the name in characters, of a picture's cell in octaves."""

    name: int
    octaves: int

    def line(self, name: Text, label: Text, picture: Text, *numbers: Text) -> Text:
        """Put the parts of a row side by side: names to the left, numbers to the right."""
        name.pad_right(self.name - name.cell_len)
        label.pad_right(_LABEL - label.cell_len)
        picture.pad_right(picture_width(self.octaves) - picture.cell_len)
        for number, width in zip(numbers, (_HEADROOM, _SUBNORMAL, _BAD), strict=False):
            number.pad_left(width - number.cell_len)
        line = Text(" ").join([name, label, picture, *numbers])
        line.rstrip()
        return line


def layer_table(rows: Sequence[LayerRow], width: int, measure: str = "") -> Iterator[Text]:
    """Yield the table's lines, `width` columns wide; the last column shows `LayerRow.measure` where it has a title."""
    octaves = 1 if width >= _WIDE_FROM else 2
    rest = _LABEL + picture_width(octaves) + _HEADROOM + _SUBNORMAL + _BAD + 5
    columns = _Columns(max(_LEAST_NAME, width - rest), octaves)
    in_float16 = any(tensor.dtype == "float16" for row in rows for tensor in row.tensors)
    yield from _header(columns, in_float16, measure or "inf/NaN")
    names = fit_names([row.name for row in rows], columns.name - 2)
    for row, name in zip(rows, names, strict=True):
        yield from _layer(row, name, columns)


def _header(columns: _Columns, in_float16: bool, last: str) -> Iterator[Text]:
    heads = [Text(head, FAINT) for head in ("headroom", "subn.", last)]
    ticks = Text(axis_ticks(columns.octaves, in_float16=in_float16), FAINT)
    names = _cells(axis_names(columns.octaves)) if in_float16 else ticks
    yield columns.line(Text("layer", FAINT), Text("values", FAINT), names, *heads)
    if in_float16:
        yield columns.line(Text(), Text(), ticks)


def _layer(row: LayerRow, short: str, columns: _Columns) -> Iterator[Text]:
    sign = SEVERITIES[row.severity][0] if row.severity else " "
    name = Text.assemble((f"{sign} ", _style(row.severity, PLAIN)), (short, BOLD))
    type_name = cut(row.type, max(1, columns.name - len(row.compute_dtype) - 3))
    kind = Text(f"  {type_name} {row.compute_dtype}", FAINT)
    names = [name, kind] + [Text() for _ in row.tensors[2:]]
    tensors = [*row.tensors, *[None] * (2 - len(row.tensors))]
    for number, (first, tensor) in enumerate(zip(names, tensors, strict=True)):
        yield _tensor(first, tensor, row, columns, is_first=number == 0)


def _tensor(name: Text, tensor: TensorRow | None, row: LayerRow, columns: _Columns, *, is_first: bool) -> Text:
    if tensor is None:
        return columns.line(name, Text(), Text())
    label = Text(tensor.label, FAINT)
    if not tensor.values:
        return columns.line(name, label, Text("not in these samples", FAINT))
    float_format = FORMATS[tensor.dtype]
    return columns.line(
        name,
        label,
        _picture(tensor, columns.octaves),
        Text(bits(tensor.headroom_bits), _style(tensor.alarm, PLAIN if float_format.bits == 16 else FAINT)),
        Text(percent(tensor.subnormal_share), PLAIN if tensor.subnormal_share else FAINT),
        _last_cell(tensor, row, is_first=is_first),
    )


def _last_cell(tensor: TensorRow, row: LayerRow, *, is_first: bool) -> Text:
    if row.measure is not None:  # of the layer, not of each tensor
        return Text(row.measure if is_first else "", PLAIN)
    bad = tensor.infinities + tensor.nans
    return Text(compact(bad), _style(row.severity, PLAIN) if bad else FAINT)


def _style(severity: Severity | None, otherwise: str) -> str:
    return SEVERITIES[severity][1] if severity else otherwise


def _picture(tensor: TensorRow, octaves: int) -> Text:
    if not tensor.has_finite:
        return Text("nothing finite", BANDS["overflow"])
    return _cells(draw(tensor.histogram, FORMATS[tensor.dtype], octaves, tensor.infinities))


def _cells(cells: Sequence[Cell]) -> Text:
    return Text.assemble(*((cell.glyph, BANDS[cell.band]) for cell in cells))
