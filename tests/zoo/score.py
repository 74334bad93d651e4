"""Scores the advice on a case: what is named against what is true."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import precscope
from precscope.advice import Evidence, analyze, keep_float32
from tests.zoo.case import build
from tests.zoo.training import STEPS, train_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from precscope.advice import Finding
    from precscope.reader import Run
    from tests.zoo.case import Case

__all__ = ["Score", "Total", "add_up", "profile_case", "score_case"]


@dataclass(frozen=True)
class Score:
    """What the advice on one case is worth.

    What is to be found are the layers of the case's truth, or its action where that is not a set of layers.

    Attributes:
        case: The case.
        findings: All findings, worst first.
        named: The layers that the advice keeps in float32.
        found: How much of what is to be found was.
        to_find: How much that is.
        wrong: Layers named that are neither needed nor tolerated.
        top_is_right: Whether the first finding names the right layer (or none, where the action has none) and action.
        is_false_alarm: Whether a healthy control was given a warning or an error.
    """

    case: Case
    findings: tuple[Finding, ...]
    named: tuple[str, ...]
    found: int
    to_find: int
    wrong: tuple[str, ...]
    top_is_right: bool
    is_false_alarm: bool

    @property
    def is_right(self) -> bool:
        """Whether nothing is missing, wrong or in the wrong order."""
        missed = self.found < self.to_find or not self.top_is_right
        return not self.wrong and not self.is_false_alarm and (self.case.is_healthy or not missed)


@dataclass(frozen=True)
class Total:
    """The zoo's score; shares of one.

    Attributes:
        recall: Of what was to be found, what was.
        precision: Of the layers named, those that are needed or tolerated.
        top_1: Of the faulty cases, those whose first finding is right.
        false_alarms: Healthy controls that were given a warning or an error.
    """

    recall: float
    precision: float
    top_1: float
    false_alarms: int


def profile_case(case: Case, path: Path, every: int = 5, steps: int = STEPS, **options: Any) -> Run:
    """Train the case inside `precscope.profile`, sampling every so many steps, and return the run."""
    model = build(case)
    quiet: dict[str, Any] = {"reference": True, "profile_steps": 0, "device_interval_s": 0.0}
    session = precscope.profile(model, path, every=every, **(quiet | options))
    train_model(case, model, session, steps)
    return precscope.open_run(path)


def score_case(case: Case, run: Run) -> Score:
    """Return the score of the advice that the run of a case gives."""
    findings = analyze(Evidence(run))
    serious = [finding for finding in findings if finding.severity != "info"]
    named = keep_float32(findings)
    right_actions = {case.action} | case.also_right
    right_layers = case.truth | case.suspects
    tolerated = right_layers | set(case.extras)
    if case.truth:
        found, to_find = len(case.truth & set(named)), len(case.truth)
    else:
        found = int(any(finding.action in right_actions for finding in serious))
        to_find = 0 if case.is_healthy else 1
    return Score(
        case,
        findings,
        named,
        found,
        to_find,
        tuple(name for name in named if not any(name == ok or name.startswith(f"{ok}/") for ok in tolerated)),
        bool(serious)
        and serious[0].action in right_actions
        and (serious[0].layer in right_layers or (not right_layers and serious[0].action != "keep_float32")),
        case.is_healthy and bool(serious),
    )


def add_up(scores: Sequence[Score]) -> Total:
    """Return the score of several cases together."""
    faulty = [score for score in scores if not score.case.is_healthy]
    named = sum(len(score.named) for score in scores)
    return Total(
        sum(score.found for score in faulty) / max(sum(score.to_find for score in faulty), 1),
        1 - sum(len(score.wrong) for score in scores) / max(named, 1),
        sum(score.top_is_right for score in faulty) / max(len(faulty), 1),
        sum(score.is_false_alarm for score in scores),
    )
