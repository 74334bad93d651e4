"""All figures of a run, each made when it is asked for: what `run.figures` gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precscope.advice import Evidence, analyze
from precscope.advice.loss_scale_account import loss_scale_account
from precscope.reports.figures.memory import memory_figure
from precscope.reports.figures.range_map import range_map_figure
from precscope.reports.figures.reference_errors import reference_figure
from precscope.reports.figures.time_and_risk import time_and_risk_figure
from precscope.reports.figures.training import training_figure
from precscope.reports.memory_view import memory_series
from precscope.reports.reference_view import reference_view
from precscope.reports.risk_view import risk_view
from precscope.reports.training_view import training_view

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from precscope.reader import Run

__all__ = ["Figures"]


class Figures:
    """The figures of one run; one that has nothing to show says so in its title.

    Attributes:
        run: The run.
    """

    def __init__(self, run: Run):
        self.run = run
        self._evidence = Evidence(run)

    def range_map(self, format: str | None = None, loss_scale: float | None = None) -> go.Figure:
        """Return where each layer's outputs and gradients lie, against the limits of a format.

        Args:
            format: Name of the format whose limits are drawn; by default the one that most layers compute in.
            loss_scale: Shows the gradients at this loss scale; by default at the last recorded one.

        Raises:
            ValueError: There is no such format, or the loss scale is not positive and finite.
        """
        return range_map_figure(self._evidence, format, loss_scale)

    def training(self) -> go.Figure:
        """Return loss, loss scale and skipped steps over the run."""
        account = loss_scale_account(self._evidence)
        return training_figure(training_view(self._evidence), account.stretches if account else ())

    def time_and_risk(self) -> go.Figure:
        """Return the time of each layer that computes in 16 bits beside what was found about it."""
        return time_and_risk_figure(risk_view(self._evidence, analyze(self._evidence)))

    def memory(self) -> go.Figure:
        """Return memory over time."""
        return memory_figure(memory_series(self.run))

    def reference_errors(self) -> go.Figure:
        """Return the errors of the last reference step, own and inherited, by layer."""
        return reference_figure(reference_view(self.run))
