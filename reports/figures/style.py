"""What all figures share: colours, margins, and text that shows names as they are."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from precscope.reports.palette import PAGE_BANDS
from precscope.reports.text import printable, shorten

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from precscope.advice.finding import Severity

__all__ = ["BAND_COLORS", "LINES", "SEVERITY_MARKS", "figure_text", "styled"]

BAND_COLORS = PAGE_BANDS["light"]
LINES = (BAND_COLORS["normal"], BAND_COLORS["subnormal"], BAND_COLORS["flushed"], "#5b6470")
#: Colour and symbol of a layer by its worst finding.
SEVERITY_MARKS: dict[Severity | None, tuple[str, str]] = {
    "error": (BAND_COLORS["overflow"], "x"),
    "warning": (BAND_COLORS["subnormal"], "triangle-up"),
    None: (BAND_COLORS["normal"], "circle"),
}


def figure_text(name: str, cells: int = 60) -> str:
    """Return a name that plotly shows as it is: it would read some HTML, and "%{...}" in templates."""
    return html.escape(shorten(printable(name), cells), quote=False)


def styled(figure: go.Figure, height: int = 340, *, nothing: str = "") -> go.Figure:
    """Give a figure the common look; where it has no trace, its title says `nothing`."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 70, "r": 20, "t": 30 if figure.data else 60, "b": 50},
        font={"size": 13},
        hoverlabel={"align": "left"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    if not figure.data:
        figure.update_layout(title={"text": nothing})
    return figure
