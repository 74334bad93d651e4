"""Loss, loss scale and skipped steps over the run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from precscope.advice.loss_scale_account import CAUSES
from precscope.advice.wording import counted
from precscope.reports.figures.style import BAND_COLORS, LINES, styled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.advice.loss_scale_verdict import SkippedStretch
    from precscope.reports.training_view import Series, TrainingView

__all__ = ["training_figure"]

#: Name, colour and symbol of skipped steps, by whether they were a fault.
_SKIPS = {
    False: ("skipped, healthy", BAND_COLORS["subnormal"], "triangle-down"),
    True: ("skipped, a fault", BAND_COLORS["overflow"], "x"),
}


def training_figure(training: TrainingView, stretches: Sequence[SkippedStretch] = ()) -> go.Figure:
    """Return the loss above the loss scale; a mark where steps were skipped, by whether that was a fault."""
    if not training.loss.steps and not training.loss_scale.steps:
        return styled(go.Figure(), nothing="No step was seen")
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.08, row_heights=[0.45, 0.55])
    loss = _finite(training.loss)
    figure.add_scatter(
        x=loss[0],
        y=loss[1],
        name="loss",
        mode="lines+markers",
        line={"color": LINES[3]},
        marker={"size": 4},
        row=1,
        col=1,
    )
    scale = _finite(training.loss_scale)
    color = {"color": LINES[0]}
    figure.add_scatter(x=scale[0], y=scale[1], name="loss scale", line={"shape": "hv", **color}, row=2, col=1)
    for is_fault, (title, hue, symbol) in _SKIPS.items():
        found = [stretch for stretch in stretches if stretch.is_fault is is_fault]
        if not found:
            continue
        figure.add_scatter(
            x=[stretch.latest for stretch in found],
            y=[stretch.before or stretch.after for stretch in found],
            customdata=[[stretch.earliest, stretch.skipped, CAUSES[stretch.cause]] for stretch in found],
            name=title,
            mode="markers",
            marker={"symbol": symbol, "size": 9, "color": hue},
            hovertemplate="%{customdata[1]} skipped, step %{customdata[0]} to %{x}<br>%{customdata[2]}<extra></extra>",
            row=2,
            col=1,
        )
    lost = sum(value is None for value in loss[1])
    if lost:
        text = f"NaN or infinite at {counted(lost, 'sampled step')}"
        figure.add_annotation(
            text=text, x=1, xanchor="right", y=1, yanchor="bottom", xref="paper", yref="paper", showarrow=False
        )
    figure.update_yaxes(title="loss", row=1, col=1)
    figure.update_yaxes(title="loss scale", type="log", exponentformat="power", row=2, col=1)
    figure.update_xaxes(title="train step", row=2, col=1)
    return styled(figure, 420)


def _finite(series: Series) -> tuple[list[int], list[float | None]]:
    """Return steps and values; what is NaN or infinite leaves a gap, as the axis has no place for it."""
    pairs = [pair for pair in zip(series.steps, series.values, strict=True) if pair[1] is not None]
    return [step for step, _ in pairs], [value if math.isfinite(value or 0) else None for _, value in pairs]
