"""Loss, loss scale and skipped steps in the terminal: small graphs over time, and why steps were skipped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precscope.reports.palette import LINE, SEVERITIES
from precscope.reports.scale_view import best_scale, headroom, skip_lines
from precscope.reports.terminal_lines import graph, heading, note
from precscope.reports.text import printable, significant
from precscope.reports.training_view import marks, spark

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.reports.report_view import ReportView

__all__ = ["loss_and_scale"]

_MOST_SKIPS = 3


def loss_and_scale(view: ReportView, width: int, show_all: bool) -> Iterator[Text]:
    """Yield the section's lines; every stretch of skipped steps with `show_all`."""
    training, room = view.training, width - 36
    if not training.loss.steps and not training.loss_scale.steps:
        return
    yield from heading("Loss and loss scale", width)
    for label, series, logarithmic in (("loss", training.loss, False), ("loss scale", training.loss_scale, True)):
        known = [value for value in series.values if value is not None]
        if len(known) == 1:
            yield graph(label, significant(known[0]), Text())
        elif known:
            line = spark(series, training.span, room, logarithmic=logarithmic)
            yield graph(label, significant(known[0]), Text(line, LINE), significant(known[-1]))
    if not any(training.loss_scale.values):
        yield graph(
            "loss scale", "–", Text("none: gradients are not scaled" if training.scaling == "none" else "not known")
        )
    if training.steps_skipped is not None and training.scaling != "none":
        where = Text(marks(training.skipped, training.span, room), SEVERITIES["warning"][1])
        seen = f"{training.steps_seen:,}" + (" sampled" if training.sampled_only else "")
        yield graph("skipped", "", where, f"{training.steps_skipped:,} of {seen}")
    yield from _loss_scale(view, width, show_all)


def _loss_scale(view: ReportView, width: int, show_all: bool) -> Iterator[Text]:
    stretches = view.loss_scale.stretches if view.loss_scale is not None else ()
    for number, line in enumerate(skip_lines(stretches, len(stretches) if show_all else _MOST_SKIPS)):
        yield from note("" if number else "skips", Text(printable(line)), width)
    if view.curve is not None:
        if (room := headroom(view.curve)) is not None:
            yield from note("headroom", Text(f"of the loss scale: {room}"), width)
        yield from note("best fixed", Text(printable(f"scale: {best_scale(view.curve)}")), width)
