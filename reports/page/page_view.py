"""What the page's template shows: the report's view and what only the page has, all of it plain and printable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from precscope.advice import Evidence, analyze
from precscope.reports.figures.memory import memory_figure
from precscope.reports.figures.reference_errors import reference_figure
from precscope.reports.figures.time_and_risk import time_and_risk_figure
from precscope.reports.figures.training import training_figure
from precscope.reports.memory_view import memory_series
from precscope.reports.page.layer_data import layer_data
from precscope.reports.report_view import ReportView, report_view
from precscope.reports.risk_view import QUADRANTS, LayerRisk, Quadrant, risk_view

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from precscope.reader import Run
    from precscope.reports.reference_view import ReferenceView

__all__ = ["PageView", "QuadrantView", "page_view"]

_MOST_IN_QUADRANT = 6


@dataclass(frozen=True)
class QuadrantView:
    """One quadrant of time and risk: what it says, its layers (the costliest first, so many) and their time."""

    title: Quadrant
    meaning: str
    layers: tuple[LayerRisk, ...]
    count: int
    total_ms: float
    share: float


@dataclass(frozen=True)
class PageView:
    """All that the page says.

    Attributes:
        report: What the terminal says, too.
        policy: The lines to copy; None where no layer needs float32.
        quadrants: Time beside risk; empty where no time by layer was measured.
        reference: The last reference step; None where none was taken.
        figures: By the name of the place where they stand; None where there is nothing to draw.
        data: What the scripts know of the layers.
        facts: The run's record as rows, by title.
    """

    report: ReportView
    policy: str | None
    quadrants: tuple[QuadrantView, ...]
    reference: ReferenceView | None
    figures: dict[str, go.Figure | None]
    data: dict[str, Any]
    facts: dict[str, list[tuple[str, str]]]


def page_view(run: Run) -> PageView:
    """Return what the page on `run` says."""
    evidence = Evidence(run)
    findings = analyze(evidence)
    report = report_view(evidence, findings=findings)
    risks = risk_view(evidence, findings)
    figures = {
        "training": training_figure(report.training, report.loss_scale.stretches if report.loss_scale else ()),
        "risk": time_and_risk_figure(risks),
        "memory": memory_figure(memory_series(run)),
        "reference": reference_figure(report.reference),
    }
    return PageView(
        report=report,
        policy=report.policy,
        quadrants=_quadrants(risks),
        reference=report.reference,
        figures={name: figure if figure.data else None for name, figure in figures.items()},
        data=layer_data(evidence, findings),
        facts=_facts(run),
    )


def _quadrants(risks: tuple[LayerRisk, ...]) -> tuple[QuadrantView, ...]:
    views = []
    for title, meaning in QUADRANTS.items():
        found = [risk for risk in risks if risk.quadrant == title]
        total_ms, share = sum(risk.total_ms for risk in found), sum(risk.share for risk in found)
        views.append(QuadrantView(title, meaning, tuple(found[:_MOST_IN_QUADRANT]), len(found), total_ms, share))
    return tuple(views) if risks else ()


def _facts(run: Run) -> dict[str, list[tuple[str, str]]]:
    record = run.record
    tables = {
        "Model": record.model,
        "Software": record.software,
        "Hardware": record.hardware,
        "Options": record.options,
    }
    return {
        title: [(name, _worded(value)) for name, value in table.items()] for title, table in tables.items() if table
    }


def _worded(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_worded(item)}" for name, item in value.items())
    return ", ".join(map(_worded, value)) if isinstance(value, list | tuple) else str(value)
