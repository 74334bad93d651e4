"""A run as a report tells it: plain data, so that terminal and page show the same and tests need no rendering."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from precscope.advice import analyze
from precscope.advice.actions import advise
from precscope.advice.loss_scale_account import LossScaleAccount, loss_scale_account
from precscope.advice.verdict import Verdict, give_verdict
from precscope.advice.wording import listed, plain, quoted, share
from precscope.reports.layer_rows import LayerRow, layer_rows, matching
from precscope.reports.origin_view import OriginView, origin_view
from precscope.reports.run_view import CostView, RunView, cost_view, run_view
from precscope.reports.text import ABSENT, printable
from precscope.reports.time_view import TimeView, time_view
from precscope.reports.training_view import TrainingView, training_view
from precscope.scale_curve import ScaleCurve, scale_curve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.advice import Evidence, Finding, Number
    from precscope.advice.finding import Action, Confidence, Severity
    from precscope.records import NoticeRecord, TensorKind

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
        advice: What to do; None where there is nothing to do.
    """

    severity: Severity
    confidence: Confidence
    sentence: str
    numbers: tuple[str, ...]
    also: str
    advice: str | None


@dataclass(frozen=True)
class ReportView:
    """All that a report says.

    Attributes:
        run: What was trained, on what, and how it ended.
        verdict: The answer.
        training: Loss, loss scale and skipped steps over time.
        findings: Worst first.
        rows: The recorded layers that were asked for, worst first.
        layers: Number of layers that were asked for, recorded or not.
        unseen: Why layers, or the gradients at their outputs, were not recorded, and which.
        notices: What the session had to say, a line each with its severity.
        cost: What PrecScope cost.
        time: Time and memory; None where they were not measured yet when the run was recorded.
        loss_scale: What the loss scale does and why steps were skipped; None where the loss has no use for one.
        curve: The loss scale against what it costs; None where no float16 gradient was recorded.
        origin: Where the run turned non-finite; None where nothing did, as far as was seen.
    """

    run: RunView
    verdict: Verdict
    training: TrainingView
    findings: tuple[FindingView, ...]
    rows: tuple[LayerRow, ...]
    layers: int
    unseen: tuple[str, ...]
    notices: tuple[tuple[Severity, str], ...]
    cost: CostView | None
    time: TimeView | None = None
    loss_scale: LossScaleAccount | None = None
    curve: ScaleCurve | None = None
    origin: OriginView | None = None


def report_view(
    evidence: Evidence, pattern: str | None = None, findings: Sequence[Finding] | None = None
) -> ReportView:
    """Return what a report on the run says; of the layers that match `pattern`, with their weights, where given.

    Findings that were made before need not be made again.

    Raises:
        PrecScopeError: The pattern is no regular expression, or matches no layer.
    """
    findings = analyze(evidence) if findings is None else findings
    layers = matching(evidence.layers, pattern)
    verdict = give_verdict(evidence, findings)
    return ReportView(
        run=run_view(evidence.run),
        verdict=verdict,
        training=training_view(evidence),
        findings=_finding_views(findings),
        rows=tuple(layer_rows(evidence, findings, layers, _KINDS if pattern is None else _ALL_KINDS)),
        layers=len(layers),
        unseen=_unseen(evidence),
        notices=tuple(map(_notice, evidence.run.notices)),
        cost=cost_view(evidence.run),
        time=time_view(evidence.run, None if pattern is None else {layer.id for layer in layers}),
        loss_scale=loss_scale_account(evidence),
        curve=scale_curve(evidence.run),
        origin=origin_view(evidence),
    )


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
