"""The last reference step in the terminal: a line about it, and the tensors with the largest own errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precscope.advice.wording import counted
from precscope.reports.names import fit_names
from precscope.reports.palette import BOLD, FAINT, SEVERITIES
from precscope.reports.reference_view import worst_first
from precscope.reports.terminal_lines import heading, note
from precscope.reports.text import ABSENT, compact, percent, shorten, significant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.reports.reference_view import ReferenceRow, ReferenceView

__all__ = ["reference_errors"]

_MOST = 6
_LEAST_NAME, _MOST_NAME, _TENSOR, _NUMBER = 12, 40, 18, 9
#: Columns from the left; the last ones are left out where there is no room.
_HEADS = ("own error", "own flush", "own ovfl.", "whole", "cosine", "inherited")


def reference_errors(view: ReferenceView | None, width: int, show_all: bool) -> Iterator[Text]:
    """Yield the section's lines; all tensors with `show_all`."""
    if view is None:
        return
    shown = worst_first(view.rows)[: None if show_all else _MOST]
    aside = f"{len(shown)} of {len(view.rows)} tensors shown · --all" if len(shown) < len(view.rows) else ""
    yield from heading("Errors against float32, largest own first", width, aside)
    yield from note("measured", Text(_lead(view), FAINT), width)
    for reason in view.left_out:
        text = Text.assemble((reason, SEVERITIES["warning"][1]), (": its reference is less than float32", FAINT))
        yield from note("left out", text, width)
    yield from _table(shown, width)


def _lead(view: ReferenceView) -> str:
    examples = ""
    if view.examples is not None and view.batch is not None and view.examples < view.batch:
        examples = f", on {view.examples:,} of {view.batch:,} examples, for more did not fit into memory"
    losses = ""
    if view.losses is not None:
        losses = f" Loss {view.losses}."
    cost = ""
    if view.cost is not None:
        cost = f" {counted(view.steps, 'reference step')} cost {view.cost}."
    return (
        f"step {view.step:,}, {view.moment}{examples}: the same batch in float32 and in the training's policy, at loss "
        f"scale {significant(view.loss_scale)}.{losses} Random numbers {view.random}.{cost}"
    )


def _table(rows: list[ReferenceRow], width: int) -> Iterator[Text]:
    columns = min(len(_HEADS), (width - _LEAST_NAME - _TENSOR - 2) // (_NUMBER + 1))
    name = min(_MOST_NAME, width - _TENSOR - 2 - columns * (_NUMBER + 1))
    yield Text.assemble(
        (f"{'layer':<{name}}  {'tensor':<{_TENSOR}}", FAINT),
        *((f" {head:>{_NUMBER}}", FAINT) for head in _HEADS[:columns]),
    )
    for row, short in zip(rows, fit_names([row.name for row in rows], name), strict=True):
        numbers = (
            significant(row.own_relative_error),
            percent(row.own_flushed_share),
            ABSENT if row.own_overflowed is None else compact(row.own_overflowed),
            significant(row.relative_error),
            significant(row.cosine),
            significant(row.inherited_relative_error),
        )
        style = FAINT if row.is_negligible else ""
        line = Text.assemble(
            (f"{short:<{name}}", style or BOLD),
            (f"  {shorten(row.tensor, _TENSOR):<{_TENSOR}}", style),
            *((f" {number:>{_NUMBER}}", style) for number in numbers[:columns]),
        )
        line.rstrip()
        yield line
