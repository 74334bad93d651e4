"""A run as a report tells it: plain data, so that terminal and page show the same and tests need no rendering."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from precscope.advice import analyze
from precscope.advice.actions import advise
from precscope.advice.loss_scale_account import LossScaleAccount, loss_scale_account
from precscope.advice.proposal import policy_of_evidence
from precscope.advice.verdict import Verdict, give_verdict
from precscope.advice.wording import listed, plain, quoted, share
from precscope.reports.layer_figures import layer_figures
from precscope.reports.layer_order import ORDERS, is_known, sort_layers
from precscope.reports.layer_rows import LayerRow, layer_rows, matching
from precscope.reports.origin_view import OriginView, origin_view
from precscope.reports.policy_text import policy_text
from precscope.reports.proof_view import ProofView, proof_view
from precscope.reports.reference_view import ReferenceView, reference_view
from precscope.reports.run_view import CostView, RunView, cost_view, run_view
from precscope.reports.text import ABSENT, printable
from precscope.reports.time_view import TimeView, time_view
from precscope.reports.training_view import TrainingView, training_view
from precscope.scale_curve import ScaleCurve, scale_curve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.advice import Evidence, Finding, Number
    from precscope.advice.finding import Action, Confidence, Severity
    from precscope.records import LayerRecord, NoticeRecord, TensorKind

__all__ = ["FindingView", "ReportView", "report_view"]

_KINDS: tuple[TensorKind, ...] = ("activation", "gradient")
_ALL_KINDS: tuple[TensorKind, ...] = (*_KINDS, "weight", "weight_gradient")

_MOST_ALIKE = 5


@dataclass(frozen=True)
class FindingView:
    """A finding in words, and others like it.

    Attributes:
        severity: How bad it is.
        confidence: How it is known.
        sentence: What happened, printable.
        numbers: Each number beside its threshold.
        also: The other layers of which the rule says the same, each with its first number; empty for none.
        risks: What in the code of the worst layer may be the cause, with the line that does it; printable.
        advice: What to do; None where there is nothing to do.
    """

    severity: Severity
    confidence: Confidence
    sentence: str
    numbers: tuple[str, ...]
    also: str
    risks: tuple[str, ...]
    advice: str | None


@dataclass(frozen=True)
class ReportView:
    """All that a report says.

    Attributes:
        run: What was trained, on what, and how it ended.
        verdict: The answer.
        training: Loss, loss scale and skipped steps over time.
        findings: Worst first.
        rows: The recorded layers that were asked for, in the order that was asked for.
        order: That order in words.
        measure: Title of the column that shows what they were sorted by; empty where another column does.
        layers: Number of layers that were asked for, recorded or not.
        unseen: Why layers, or the gradients at their outputs, were not recorded, and which.
        notices: What the session had to say, a line each with its severity.
        cost: What PrecScope cost.
        time: Time and memory; None where they were not measured yet when the run was recorded.
        loss_scale: What the loss scale does and why steps were skipped; None where the loss has no use for one.
        curve: The loss scale against what it costs; None where no float16 gradient was recorded.
        origin: Where the run turned non-finite; None where nothing did, as far as was seen.
        proof: What replaying batches showed; None where that was not tried.
        policy: The policy to copy; None where no layer needs float32.
        reference: The last reference step; None where none was taken.
    """

    run: RunView
    verdict: Verdict
    training: TrainingView
    findings: tuple[FindingView, ...]
    rows: tuple[LayerRow, ...]
    order: str
    measure: str
    layers: int
    unseen: tuple[str, ...]
    notices: tuple[tuple[Severity, str], ...]
    cost: CostView | None
    time: TimeView | None = None
    loss_scale: LossScaleAccount | None = None
    curve: ScaleCurve | None = None
    origin: OriginView | None = None
    proof: ProofView | None = None
    policy: str | None = None
    reference: ReferenceView | None = None


def report_view(
    evidence: Evidence,
    pattern: str | None = None,
    findings: Sequence[Finding] | None = None,
    *,
    sort: str = "harm",
) -> ReportView:
    """Return what a report on the run says; of the layers that match `pattern`, with their weights, where given.

    Args:
        evidence: The run.
        pattern: A regular expression for layer ids; None for all layers.
        findings: Where they were made before, they need not be made again.
        sort: A key of `layer_order.ORDERS`.

    Raises:
        PrecScopeError: The pattern is no regular expression, or matches no layer.
    """
    findings = analyze(evidence) if findings is None else findings
    layers = matching(evidence.layers, pattern)
    verdict = give_verdict(evidence, findings)
    rows, order = _sorted_rows(evidence, findings, layers, sort, _KINDS if pattern is None else _ALL_KINDS)
    return ReportView(
        run=run_view(evidence.run),
        verdict=verdict,
        training=training_view(evidence),
        findings=_finding_views(findings),
        rows=tuple(rows),
        order=order,
        measure=ORDERS[sort].column if rows and rows[0].measure is not None else "",
        layers=len(layers),
        unseen=_unseen(evidence),
        notices=tuple(map(_notice, evidence.run.notices)),
        cost=cost_view(evidence.run),
        time=time_view(evidence.run, None if pattern is None else {layer.id for layer in layers}),
        loss_scale=loss_scale_account(evidence),
        curve=scale_curve(evidence.run),
        origin=origin_view(evidence),
        proof=proof_view(evidence.run.verification),
        policy=policy_text(policy_of_evidence(evidence, findings)),
        reference=reference_view(evidence.run, None if pattern is None else {layer.id for layer in layers}),
    )


def _sorted_rows(
    evidence: Evidence,
    findings: Sequence[Finding],
    layers: Sequence[LayerRecord],
    sort: str,
    kinds: Sequence[TensorKind],
) -> tuple[list[LayerRow], str]:
    """Return the rows and, in words, how they are sorted."""
    order, missing = ORDERS[sort], ""
    if sort != "harm":
        figures = layer_figures(evidence, findings, layers)
        if is_known(figures, order):
            ordered = sort_layers(figures, order)
            by_id = {layer.id: layer for layer in layers}
            measures = {item.id: order.text(item) for item in ordered} if order.column else None
            places = [by_id[item.id] for item in ordered]
            return layer_rows(evidence, findings, places, kinds, worst_first=False, measures=measures), order.title
        missing = f" ({order.missing}, so they cannot be sorted by {sort})" if figures else ""
    rows = layer_rows(evidence, findings, layers, kinds)
    title = ORDERS["harm"].title if any(row.severity for row in rows) else ORDERS["headroom"].title
    return rows, f"{title}{missing}"


def _finding_views(findings: Sequence[Finding]) -> tuple[FindingView, ...]:
    """Return the findings in words; an advice that was given before is not repeated."""
    views: list[FindingView] = []
    for view in map(_finding_view, _alike(findings)):
        given = [number for number, earlier in enumerate(views, start=1) if earlier.advice == view.advice]
        views.append(replace(view, advice=f"As for {given[0]}.") if view.advice and given else view)
    return tuple(views)


def _alike(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Return the findings in groups that one rule made with one severity and one action, worst first."""
    groups: dict[tuple[str, Severity, Action], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.id, finding.severity, finding.action].append(finding)
    return list(groups.values())


def _finding_view(group: Sequence[Finding]) -> FindingView:
    worst, *others = group
    also = ", ".join(f"{quoted(other.layer or '')} ({_first_number(other)})" for other in others[:_MOST_ALIKE])
    more = f" and {len(others) - _MOST_ALIKE} more" if len(others) > _MOST_ALIKE else ""
    return FindingView(
        severity=worst.severity,
        confidence=worst.confidence,
        sentence=printable(worst.sentence),
        numbers=tuple(f"{name} {_number(number)}" for name, number in worst.numbers.items()),
        also=printable(f"{also}{more}"),
        risks=tuple(printable(f"{item.sentence} {item.place or ''}".strip()) for item in worst.risks),
        advice=None if worst.action == "none" else printable(advise(*group)),
    )


def _first_number(finding: Finding) -> str:
    name, number = next(iter(finding.numbers.items()))
    return f"{name} {_number(number._replace(threshold=None))}"


def _number(number: Number) -> str:
    limit = "" if number.threshold is None else f" (limit {_worded(number.threshold, number.unit)})"
    unit = " bits" if number.unit == "bits" and number.value is not None else ""
    return f"{_worded(number.value, number.unit)}{unit}{limit}"


def _worded(value: float | None, unit: str) -> str:
    if value is None:
        return ABSENT
    if unit == "share":
        return share(value)
    # Rounded down, lest a cosine that is not 1 look like it.
    return f"{math.floor(value * 1e4) / 1e4:g}" if unit == "cosine" else plain(value)


def _unseen(evidence: Evidence) -> tuple[str, ...]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for layer in evidence.layers:
        if layer.unseen is not None:
            reasons[layer.unseen].append(layer.id)
        elif layer.gradient_unseen is not None:
            reasons[f"gradient only: {layer.gradient_unseen}"].append(layer.id)
    ranked = sorted(reasons.items(), key=lambda item: -len(item[1]))
    return tuple(printable(f"{reason}: {listed(names)}") for reason, names in ranked)


def _notice(notice: NoticeRecord) -> tuple[Severity, str]:
    at = "" if notice.step is None else f"step {notice.step:,}: "
    return notice.level, printable(f"{at}{notice.message}")
