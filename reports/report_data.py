"""The report as data for other programs; docs/report_format.md says what each field means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from precscope.advice import analyze
from precscope.advice.actions import advise
from precscope.advice.loss_scale_account import loss_scale_account
from precscope.advice.proposal import policy_of_evidence
from precscope.advice.verdict import Verdict, give_verdict
from precscope.reports.layer_figures import LayerFigures, layer_figures
from precscope.reports.layer_order import ORDERS, is_known, sort_layers
from precscope.reports.layer_rows import layer_severities, matching
from precscope.reports.policy_text import policy_text
from precscope.reports.reference_view import ReferenceView, reference_view
from precscope.run_summary import RunSummary, summarize
from precscope.scale_curve import scale_curve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.advice import Evidence, Finding, Number
    from precscope.advice.finding import Action, Confidence, Severity
    from precscope.advice.loss_scale_verdict import Cause
    from precscope.layer_time import LayerTime
    from precscope.reader import Run
    from precscope.records import CostRecord, NoticeRecord

__all__ = ["FORMAT", "VERSION", "ReportData", "report_data"]

FORMAT, VERSION = "precscope-report", 1


@dataclass(frozen=True)
class RunData:
    """The run's record and where it lies."""

    name: str
    path: str
    status: str
    error: str | None
    started_unix_s: float
    ended_unix_s: float | None
    model: dict[str, Any]
    software: dict[str, str]
    hardware: dict[str, Any]
    options: dict[str, Any]


@dataclass(frozen=True)
class FindingData:
    """A finding; each of its numbers has a value, a threshold and a unit."""

    id: str
    layer: str | None
    severity: Severity
    confidence: Confidence
    sentence: str
    numbers: dict[str, dict[str, Any]]
    action: Action
    advice: str | None
    consumers: tuple[str, ...]


@dataclass(frozen=True)
class SkipData:
    """A stretch of skipped steps; see `SkippedStretch`."""

    earliest_step: int
    latest_step: int
    exact: bool
    skipped: int
    loss_scale_before: float | None
    loss_scale_after: float | None
    cause: Cause
    fault: bool


@dataclass(frozen=True)
class LossScaleData:
    """What the loss scale does; None where it is not known."""

    scaling: str | None
    level: str | None
    sentence: str | None
    last: float | None
    lowest: float | None
    steps_seen: int
    steps_skipped: int | None
    sampled_only: bool
    skips: tuple[SkipData, ...]
    headroom_bits: float | None
    best_fixed: float | None
    limiting_layer: str | None


@dataclass(frozen=True)
class TimeData:
    """Step time, and device time by layer and part in the profiled window."""

    batch: int | None
    step_time_ms: dict[str, Any] | None
    steps_timed: int
    examples_per_s: float | None
    profiled_first_step: int | None
    profiled_steps: int | None
    parts: tuple[LayerTime, ...]


@dataclass(frozen=True)
class CostData:
    """What PrecScope cost: in all, as a share of the run's time (None while it runs), and by part."""

    time_ns: int
    share: float | None
    parts: tuple[CostRecord, ...]


@dataclass(frozen=True)
class ReportData:
    """All that a report says; NaN and infinities are as the run has them."""

    run: RunData
    verdict: Verdict
    policy: str | None
    findings: tuple[FindingData, ...]
    order: str
    layers: tuple[LayerFigures, ...]
    loss: dict[str, Any]
    loss_scale: LossScaleData
    time: TimeData
    memory_bytes: dict[str, int]
    reference: dict[str, Any] | None
    notices: tuple[NoticeRecord, ...]
    cost: CostData


def report_data(evidence: Evidence, pattern: str | None = None, sort: str = "harm") -> ReportData:
    """Return the report as data, of the layers that match `pattern` where given, sorted as `ORDERS[sort]` says.

    Raises:
        PrecScopeError: The pattern is no regular expression, or matches no layer.
    """
    run, findings = evidence.run, analyze(evidence)
    layers = layer_figures(evidence, findings, matching(evidence.layers, pattern))
    order = sort if sort == "harm" or is_known(layers, ORDERS[sort]) else "harm"
    verdict, summary = give_verdict(evidence, findings), summarize(run)
    reference = reference_view(run, None if pattern is None else {layer.id for layer in layers})
    return ReportData(
        run=_run(run),
        verdict=verdict,
        policy=policy_text(policy_of_evidence(evidence, findings)),
        findings=tuple(map(_finding, findings)),
        order=order,
        layers=tuple(_by_harm(layers, findings) if order == "harm" else sort_layers(layers, ORDERS[order])),
        loss={"step": summary.loss_step, "value": summary.loss, "results": summary.results},
        loss_scale=_loss_scale(evidence),
        time=_time(run, summary),
        memory_bytes={str(source): size for source, size in summary.memory_bytes.items()},
        reference=_reference(reference),
        notices=run.notices,
        cost=_cost(run),
    )


def _run(run: Run) -> RunData:
    record = run.record
    return RunData(
        name=record.name,
        path=str(run.path),
        status=run.status,
        error=record.error,
        started_unix_s=record.started_unix_s,
        ended_unix_s=record.ended_unix_s,
        model=record.model,
        software=record.software,
        hardware=record.hardware,
        options=record.options,
    )


def _finding(finding: Finding) -> FindingData:
    return FindingData(
        id=finding.id,
        layer=finding.layer,
        severity=finding.severity,
        confidence=finding.confidence,
        sentence=finding.sentence,
        numbers={name: _number(number) for name, number in finding.numbers.items()},
        action=finding.action,
        advice=None if finding.action == "none" else advise(finding),
        consumers=finding.consumers,
    )


def _number(number: Number) -> dict[str, Any]:
    return {"value": number.value, "threshold": number.threshold, "unit": number.unit}


def _by_harm(layers: Sequence[LayerFigures], findings: Sequence[Finding]) -> list[LayerFigures]:
    rank = {name: place for place, name in enumerate(layer_severities(findings))}
    by_headroom = sort_layers(layers, ORDERS["headroom"])
    return sorted(by_headroom, key=lambda layer: rank.get(layer.id, len(rank)))


def _loss_scale(evidence: Evidence) -> LossScaleData:
    account, curve, skips = loss_scale_account(evidence), scale_curve(evidence.run), evidence.skips
    return LossScaleData(
        scaling=evidence.loss_scaling,
        level=None if account is None else account.level,
        sentence=None if account is None else account.sentence,
        last=skips.last_scale,
        lowest=skips.lowest_scale,
        steps_seen=skips.seen,
        steps_skipped=skips.skipped,
        sampled_only=skips.sampled_only,
        skips=tuple(
            SkipData(
                earliest_step=stretch.earliest,
                latest_step=stretch.latest,
                exact=stretch.is_exact,
                skipped=stretch.skipped,
                loss_scale_before=stretch.before,
                loss_scale_after=stretch.after,
                cause=stretch.cause,
                fault=stretch.is_fault,
            )
            for stretch in evidence.skipped_stretches
        ),
        headroom_bits=None if curve is None else curve.headroom_bits,
        best_fixed=None if curve is None else curve.best_scale,
        limiting_layer=None if curve is None else curve.limiting_layer,
    )


def _time(run: Run, summary: RunSummary) -> TimeData:
    spread, window = summary.step_time_ms, run.profiled_window
    quartiles = None
    if spread is not None:
        quartiles = {
            "median": spread.median,
            "lower_quartile": spread.lower_quartile,
            "upper_quartile": spread.upper_quartile,
            "count": spread.count,
        }
    return TimeData(
        batch=summary.batch,
        step_time_ms=quartiles,
        steps_timed=summary.steps_timed,
        examples_per_s=summary.examples_per_s,
        profiled_first_step=None if window is None else window.first_step,
        profiled_steps=None if window is None else window.steps,
        parts=run.layer_times(),
    )


def _reference(view: ReferenceView | None) -> dict[str, Any] | None:
    if view is None:
        return None
    names = ("kind", "relative_error", "own_relative_error", "flushed_share", "overflowed", "sqnr_db", "cosine")
    return {
        "step": view.step,
        "steps": view.steps,
        "examples": view.examples,
        "batch": view.batch,
        "loss_float32": view.loss_reference,
        "loss_policy": view.loss_policy,
        "errors": [{"layer": row.layer} | {name: getattr(row, name) for name in names} for row in view.rows],
    }


def _cost(run: Run) -> CostData:
    total_ns, ended = sum(cost.time_ns for cost in run.costs), run.record.ended_unix_s
    took = None if ended is None else ended - run.record.started_unix_s
    return CostData(total_ns, total_ns / 1e9 / took if took and took > 0 else None, run.costs)
