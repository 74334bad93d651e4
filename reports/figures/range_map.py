"""The range map: where every layer's values lie, against the limits of a format."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from precscope.formats import FORMATS, FloatFormat, get_format
from precscope.reports.figures.style import BAND_COLORS, figure_text, styled
from precscope.reports.tensor_groups import KINDS, tensor_groups
from precscope.statistics import BIN_EXPONENTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from precscope.advice import Evidence
    from precscope.reports.tensor_groups import TensorGroups

__all__ = ["main_format", "range_map_figure"]

_BANDS = ("flushed", "subnormal", "normal", "overflow")
#: The lowest share that is told from none: one value in a million.
_DECADES = 6


def main_format(evidence: Evidence) -> str:
    """Return the 16-bit format that most layers compute in, float16 where none does."""
    narrow = Counter(
        layer.compute_dtype
        for layer in evidence.layers
        if layer.compute_dtype in FORMATS and FORMATS[layer.compute_dtype].bits <= 16
    )
    return max(narrow, key=narrow.__getitem__) if narrow else "float16"


def range_map_figure(evidence: Evidence, format: str | None = None, loss_scale: float | None = None) -> go.Figure:
    """Return outputs on the left, gradients on the right, a line a layer, in forward order.

    Raises:
        ValueError: There is no such format, or the loss scale is not positive and finite.
    """
    float_format, octaves = get_format(format or main_format(evidence)), _octaves(evidence, loss_scale)
    groups = tensor_groups(evidence)
    if not len(groups.layer):
        return styled(go.Figure(), nothing="Nothing was recorded yet")
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.02, subplot_titles=("Forward", "Backward"))
    names = [figure_text(layer.id, 40) for layer in evidence.layers]
    for column, kind in enumerate(("activation", "gradient"), start=1):
        shift = octaves if kind == "gradient" else 0
        shares = _shares(groups, KINDS.index(kind), len(names), shift)
        figure.add_heatmap(
            z=_colored(shares, float_format),
            x=BIN_EXPONENTS,
            y=list(range(len(names))),
            customdata=np.where(shares > 0, shares, np.nan),
            text=[[name] * len(BIN_EXPONENTS) for name in names] if len(names) <= 100 else None,
            zmin=0,
            zmax=len(_BANDS),
            colorscale=_colorscale(),
            showscale=False,
            hovertemplate="%{text}<br>2^%{x}: %{customdata:.2%}<extra></extra>",
            row=1,
            col=column,
        )
        for border in (float_format.subnormal_exponent_min, float_format.exponent_min, float_format.exponent_max + 1):
            if BIN_EXPONENTS[0] < border <= BIN_EXPONENTS[-1]:
                figure.add_vline(x=border - 0.5, line={"color": "#5b6470", "width": 1}, row=1, col=column)
    figure.update_xaxes(title="exponent (powers of 2)", range=[BIN_EXPONENTS[0] - 0.5, BIN_EXPONENTS[-1] + 0.5])
    few = len(names) <= 60
    figure.update_yaxes(
        autorange="reversed", tickvals=list(range(len(names))) if few else [], ticktext=names if few else []
    )
    return styled(figure, min(900, 160 + 22 * len(names))).update_layout(margin={"l": 220 if few else 40, "t": 50})


def _octaves(evidence: Evidence, loss_scale: float | None) -> int:
    """Return by how many octaves another loss scale moves the gradients."""
    if loss_scale is None:
        return 0
    if not (math.isfinite(loss_scale) and loss_scale > 0):
        raise ValueError(f"Expected a positive, finite loss scale. Received {loss_scale!r}.")
    recorded = evidence.samples[-1].loss_scale if evidence.samples else None
    return round(math.log2(loss_scale) - math.log2(recorded or 1.0))


def _shares(groups: TensorGroups, kind: int, layers: int, shift: int) -> NDArray[np.float64]:
    """Return float64 [layers, bins]: each layer's values of one kind by exponent, as shares of them."""
    counts = np.zeros((layers, len(BIN_EXPONENTS)))
    chosen = groups.kind == kind
    np.add.at(counts, groups.layer[chosen], groups.histograms[chosen].astype(np.float64))
    moved = np.zeros_like(counts)
    places = np.clip(np.arange(counts.shape[1]) + shift, 0, counts.shape[1] - 1)
    np.add.at(moved.T, places, counts.T)
    total = moved.sum(axis=1, keepdims=True)
    shares: NDArray[np.float64] = np.divide(moved, total, out=np.zeros_like(moved), where=total > 0)
    return shares


def _colored(shares: NDArray[np.float64], float_format: FloatFormat) -> NDArray[np.float64]:
    """Return [layers, bins]: the band's number plus how dark its colour is, from 0 to 1; NaN where there is nothing."""
    exponents = np.array(BIN_EXPONENTS)
    limits = [float_format.subnormal_exponent_min, float_format.exponent_min, float_format.exponent_max + 1]
    bands = np.searchsorted(limits, exponents, side="right")
    with np.errstate(divide="ignore"):
        darkness = np.clip(1 + np.log10(shares) / _DECADES, 0.05, 0.99)
    return np.where(shares > 0, bands + darkness, np.nan)


def _colorscale() -> list[tuple[float, str]]:
    """Return a scale of which each quarter runs from nearly white to a band's colour."""
    scale = []
    for place, band in enumerate(_BANDS):
        scale += [(place / 4, "#f4f5f7"), ((place + 1) / 4, BAND_COLORS[band])]
    return scale
