"""Time by layer beside precision risk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from precscope.reports.figures.style import SEVERITY_MARKS, figure_text, styled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.advice.finding import Severity
    from precscope.reports.risk_view import LayerRisk

__all__ = ["time_and_risk_figure"]

_LANES: dict[Severity | None, str] = {None: "no warning", "warning": "warning", "error": "error"}


def time_and_risk_figure(layers: Sequence[LayerRisk]) -> go.Figure:
    """Return a mark for each layer: how much of the step it takes, and the worst that was found about it."""
    figure = go.Figure()
    for lane, (severity, title) in enumerate(_LANES.items()):
        found = [layer for layer in layers if layer.severity == severity]
        if not found:
            continue
        color, symbol = SEVERITY_MARKS[severity]
        figure.add_scatter(
            x=[layer.total_ms for layer in found],
            # Spread within the lane, so that layers that take the same time do not hide each other.
            y=[lane + 0.5 * ((place * 0.618) % 1 - 0.5) for place in range(len(found))],
            customdata=[[figure_text(layer.name), layer.quadrant, layer.share] for layer in found],
            name=title,
            mode="markers",
            marker={"color": color, "symbol": symbol, "size": 9, "opacity": 0.8},
            hovertemplate="%{customdata[0]}<br>%{x:.3g} ms, %{customdata[2]:.1%}: %{customdata[1]}<extra></extra>",
        )
    costs = [layer.total_ms for layer in layers if layer.quadrant in ("safe and fast", "risky and costly")]
    if costs:
        figure.add_vline(x=min(costs), line={"dash": "dot", "color": "#8a93a0", "width": 1})
    figure.update_xaxes(title="ms in a step", type="log")
    figure.update_yaxes(
        tickvals=list(range(len(_LANES))), ticktext=list(_LANES.values()), range=[-0.6, 2.6], zeroline=False
    )
    figure.update_layout(showlegend=False)
    return styled(figure, 300, nothing="Time by layer was not measured").update_layout(margin={"l": 90})
