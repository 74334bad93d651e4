"""The report as data for other programs, gathered from a run."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from precscope.advice import analyze
from precscope.advice.actions import advise
from precscope.advice.loss_scale_account import loss_scale_account
from precscope.advice.proposal import policy_of_evidence
from precscope.advice.verdict import give_verdict
from precscope.reports.layer_figures import LayerFigures, layer_figures
from precscope.reports.layer_order import ORDERS, is_known, sort_layers
from precscope.reports.layer_rows import layer_severities, matching
from precscope.reports.policy_text import policy_text
from precscope.reports.reference_view import ReferenceView, reference_view
from precscope.reports.report_records import (
    CostData,
    FindingData,
    LossScaleData,
    OriginData,
    ProofData,
    ReportData,
    RunData,
    SkipData,
    TimeData,
)
from precscope.run_summary import RunSummary, summarize
from precscope.scale_curve import scale_curve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.advice import Evidence, Finding, Number
    from precscope.reader import Run
    from precscope.verification import Verification

__all__ = ["FORMAT", "VERSION", "report_data"]

FORMAT, VERSION = "precscope-report", 1


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
        proof=_proof(run.verification),
        origins=tuple(
            OriginData(**{field.name: getattr(origin, field.name) for field in fields(OriginData)})
            for origin in run.origins
        ),
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


def _proof(found: Verification | None) -> ProofData | None:
    if found is None:
        return None
    return ProofData(
        proven=found.proven,
        minimal=found.is_minimal,
        default=found.default,
        keep_float32=found.pins,
        cosine_before=found.before.worst.cosine,
        cosine_after=None if found.after is None else found.after.worst.cosine,
        least_cosine=found.criterion.gradient_cosine,
        within_noise=len((found.after or found.before).passed_as_noise),
        batches=len(found.batches),
        device=found.device,
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
        alternative=finding.alternative,
        consumers=finding.consumers,
        risks=finding.risks,
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
    names = (
        *("kind", "tensor", "relative_error", "own_relative_error", "inherited_relative_error"),
        *("flushed_share", "own_flushed_share", "overflowed", "own_overflowed", "sqnr_db", "cosine"),
    )
    return {
        "step": view.step,
        "steps": view.steps,
        "moment": view.moment,
        "loss_scale": view.loss_scale,
        "left_out": view.left_out,
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
