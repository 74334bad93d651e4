"""Memory over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from precscope.reports.figures.style import LINES, figure_text, styled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.reports.memory_view import MemorySeries

__all__ = ["memory_figure"]


def memory_figure(series: Sequence[MemorySeries]) -> go.Figure:
    """Return a line for each owner of memory, in GiB over seconds."""
    figure = go.Figure()
    for place, item in enumerate(series):
        figure.add_scatter(
            x=item.seconds,
            y=[size / 2**30 for size in item.bytes],
            name=figure_text(item.label),
            mode="lines" if len(item.seconds) > 1 else "markers",
            line={"color": LINES[place % len(LINES)], "dash": ("solid", "dash", "dot", "dashdot")[place % 4]},
            hovertemplate="%{y:.3f} GiB after %{x:.1f} s",
        )
    figure.update_xaxes(title="seconds since the run began")
    figure.update_yaxes(title="GiB", rangemode="tozero")
    return styled(figure, nothing="Memory was not measured")
