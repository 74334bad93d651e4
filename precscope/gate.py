"""The gate: whether a run holds its limits. What could not be judged is never taken for held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precscope.advice import Evidence
from precscope.gate_judges import JUDGES, Judgement, Outcome, judge_ending
from precscope.json_text import json_text

if TYPE_CHECKING:
    from precscope.limits import Limits
    from precscope.reader import Run

__all__ = ["CheckResult", "Judgement", "Outcome", "check_json", "check_run", "could_not_check"]


@dataclass(frozen=True)
class CheckResult:
    """All limits of a run.

    Attributes:
        run: The run directory's name.
        path: The run directory.
        status: How the run ended; None where it could not be read.
        outcome: "not held" where any limit was broken, else "not judged" where any could not be judged, else "held".
        judgements: One a limit.
    """

    run: str
    path: str
    status: str | None
    outcome: Outcome
    judgements: tuple[Judgement, ...]

    @property
    def exit_code(self) -> int:
        """0: held; 1: not held; 2: could not be checked."""
        return {"held": 0, "not held": 1, "not judged": 2}[self.outcome]


def check_run(run: Run, limits: Limits) -> CheckResult:
    """Return whether `run` holds `limits`.

    Raises:
        PrecScopeError: The policy file cannot be read.
    """
    evidence = Evidence(run)
    found = [] if limits.any_ending else [judge_ending(run)]
    for name, judge in JUDGES.items():
        if getattr(limits, name) is not None:
            found.append(judge(evidence, limits))
    return _result(run.record.name, str(run.path), run.status, found)


def could_not_check(path: str, reason: str) -> CheckResult:
    """Return the result for a run that cannot be read, or limits that cannot."""
    return _result(path, path, None, [Judgement("run", "not judged", None, None, reason)])


def check_json(result: CheckResult) -> str:
    """Return the result as JSON."""
    return json_text("precscope-check", 1, result)


def _result(name: str, path: str, status: str | None, judgements: list[Judgement]) -> CheckResult:
    outcomes = [judgement.outcome for judgement in judgements]
    worst: Outcome = "not held" if "not held" in outcomes else "not judged" if "not judged" in outcomes else "held"
    return CheckResult(name, path, status, worst, tuple(judgements))
