"""Figures of a run by plotly: in a notebook as they are, in the page with its colours."""

from __future__ import annotations

from precscope.reports.figures.gallery import Figures

__all__ = ["Figures"]
