"""Time and memory in the terminal: a few lines, and the layers by their time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precscope.reports.names import fit_names
from precscope.reports.palette import BOLD, FAINT, PLAIN
from precscope.reports.terminal_lines import heading, note
from precscope.reports.text import percent
from precscope.reports.time_view import milliseconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from precscope.reports.time_view import LayerTimeRow, TimeView

__all__ = ["time_and_memory"]

_DTYPE, _NUMBER, _SHARE, _CORES = 8, 8, 6, 14
_LEAST_NAME, _MOST_NAME = 10, 40


def time_and_memory(view: TimeView | None, width: int, show_all: bool) -> Iterator[Text]:
    """Yield the section's lines; the layers with `show_all`."""
    if view is None:
        return
    yield from heading("Time and memory", width)
    for label, text in view.rows:
        yield from note(label, Text(text), width)
    if view.layers and show_all:
        yield Text()
        yield from _table(view.layers, width)
    elif view.layers:
        yield from note("", Text("time by layer: --all", FAINT), width)


def _table(rows: Sequence[LayerTimeRow], width: int) -> Iterator[Text]:
    rest = _DTYPE + 3 * _NUMBER + _SHARE + _CORES + 6
    name = min(max(_LEAST_NAME, width - rest), _MOST_NAME)
    heads = ("ms in a step", "computes", "forward", "backward", "casts", "share", "tensor cores")
    yield _line(name, *(Text(head, FAINT) for head in heads))
    for row, short in zip(rows, fit_names([row.name for row in rows], name), strict=True):
        yield _line(
            name,
            Text(short, FAINT if row.name.startswith("(") else BOLD),
            Text(row.dtype, FAINT),
            *_times(row),
            Text(milliseconds(row.cast_ms) if row.cast_ms else "", FAINT),
            Text(percent(row.share)),
            Text(row.tensor_cores, FAINT),
        )


def _times(row: LayerTimeRow) -> tuple[Text, Text]:
    """Return forward and backward time; what has no direction stands in the first column."""
    if row.forward_ms is None and row.backward_ms is None and row.total_ms:
        return Text(milliseconds(row.total_ms)), Text()
    return Text(milliseconds(row.forward_ms), PLAIN), Text(milliseconds(row.backward_ms), PLAIN)


def _line(name_width: int, name: Text, dtype: Text, *numbers: Text) -> Text:
    name.pad_right(name_width - name.cell_len)
    dtype.pad_right(_DTYPE - dtype.cell_len)
    *right, last = numbers
    for number, width in zip(right, (_NUMBER, _NUMBER, _NUMBER, _SHARE), strict=True):
        number.pad_left(width - number.cell_len)
    line = Text(" ").join([name, dtype, *right, last])
    line.rstrip()
    return line
