"""The last reference step in the terminal: how far each tensor is from float32, and what its layer adds itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precscope.reports.palette import BOLD, FAINT
from precscope.reports.terminal_lines import heading, note
from precscope.reports.text import compact, percent, shorten, significant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.reports.reference_view import ReferenceRow, ReferenceView

__all__ = ["reference_errors"]

_MOST_ROWS = 4
_KIND, _ERROR, _SHARE, _COUNT, _COSINE = 15, 9, 7, 8, 7
_LEAST_NAME, _MOST_NAME = 10, 50


def reference_errors(view: ReferenceView | None, width: int, show_all: bool) -> Iterator[Text]:
    """Yield the section's lines, the layers that add most first; all of them with `show_all`."""
    if view is None:
        return
    rows = sorted(view.rows, key=_harm, reverse=True)
    shown = rows if show_all else rows[:_MOST_ROWS]
    aside = f"{len(shown)} of {len(rows)} shown · --all" if len(shown) < len(rows) else f"{len(rows)}"
    yield from heading("Errors against float32, largest own first", width, aside)
    yield from note("step", Text(_facts(view), FAINT), width)
    if shown:
        yield from _table(shown, width)


def _harm(row: ReferenceRow) -> tuple[float, float]:
    own, whole = row.own_relative_error, row.relative_error
    return (-1.0 if own is None else own, -1.0 if whole is None else whole)


def _facts(view: ReferenceView) -> str:
    parts = [f"{view.step:,}" + (f", the last of {view.steps:,} reference steps" if view.steps > 1 else "")]
    if view.examples is not None:
        of_batch = "" if view.batch is None else f" of the batch's {view.batch:,}"
        parts.append(f"{view.examples:,}{of_batch} examples")
    if view.loss_reference is not None and view.loss_policy is not None:
        losses = (significant(view.loss_reference), significant(view.loss_policy))
        parts.append(f"loss {losses[0]} in float32, {losses[1]} in the run's policy")
    return " · ".join(parts)


def _table(rows: list[ReferenceRow], width: int) -> Iterator[Text]:
    rest = _KIND + 2 * _ERROR + _SHARE + _COUNT + _COSINE + 6
    name = min(max(_LEAST_NAME, width - rest), _MOST_NAME)
    heads = ("layer", "values", "own error", "error", "flushed", "overflow", "cosine")
    yield _line(name, *(Text(head, FAINT) for head in heads))
    for row in rows:
        yield _line(
            name,
            Text(shorten(row.name, name), BOLD),
            Text(row.kind.replace("_", " "), FAINT),
            Text(significant(row.own_relative_error)),
            Text(significant(row.relative_error)),
            Text(percent(row.flushed_share)),
            Text(compact(row.overflowed)),
            Text("–" if row.cosine is None else f"{row.cosine:.4f}"),
        )


def _line(name_width: int, name: Text, kind: Text, *numbers: Text) -> Text:
    name.pad_right(name_width - name.cell_len)
    kind.pad_right(_KIND - kind.cell_len)
    for number, width in zip(numbers, (_ERROR, _ERROR, _SHARE, _COUNT, _COSINE), strict=True):
        number.pad_left(width - number.cell_len)
    return Text(" ").join([name, kind, *numbers])
