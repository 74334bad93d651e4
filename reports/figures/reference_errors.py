"""The errors of a reference step, own and inherited, by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from precscope.reports.figures.style import LINES, figure_text, styled

if TYPE_CHECKING:
    from precscope.reports.reference_view import ReferenceView

__all__ = ["reference_figure"]


def reference_figure(view: ReferenceView | None) -> go.Figure:
    """Return the relative error of each layer's output, and the part that the layer adds itself, in forward order."""
    figure = go.Figure()
    rows = [row for row in view.rows if row.kind == "activation"] if view else []
    errors = {
        "whole error": ([row.relative_error for row in rows], "circle"),
        "own error": ([row.own_relative_error for row in rows], "diamond"),
    }
    for color, (title, (values, symbol)) in zip(LINES, errors.items(), strict=False):
        if any(values):
            figure.add_scatter(
                x=list(range(len(rows))),
                # An error of exactly zero has no place on a logarithmic axis.
                y=[value or None for value in values],
                text=[figure_text(row.name) for row in rows],
                name=title,
                mode="markers",
                marker={"color": color, "symbol": symbol, "size": 8},
                hovertemplate="%{text}<br>%{y:.2e}",
            )
    figure.update_xaxes(title="layers, in forward order")
    figure.update_yaxes(title="relative error", type="log", exponentformat="power")
    return styled(figure, nothing="No reference step was taken")
