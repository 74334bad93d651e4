"""Findings as they appear: the rules, run on the last samples now and then, and what they found until now."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from precscope.advice import Evidence, analyze
from precscope.advice.actions import advise
from precscope.advice.finding import SEVERITIES
from precscope.advice.wording import counted
from precscope.reports.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from precscope.advice import Finding
    from precscope.advice.finding import Action, Severity
    from precscope.run_tail import RunTail

__all__ = ["WINDOW", "FindingsLog", "LiveFinding"]

#: How many of the last samples the rules look at.
WINDOW = 16
#: The share of one core that the rules may take: on a large model they run less often. More of it, for once, where
#: another layer is in trouble.
_SHARE, _URGENT_SHARE = 0.002, 0.01
#: So many findings that are over are kept.
_MOST_PAST = 50

Key = tuple[str, "Action"]


@dataclass(frozen=True)
class LiveFinding:
    """What one rule says of the last samples, of the worst layer first.

    Attributes:
        rule: The rule's name.
        layer: Id of the worst layer, printable; None where it concerns the whole run.
        severity: How bad it is.
        sentence: What happened, printable.
        also: How many other layers the rule says the same of, in words; empty for none.
        advice: What to do, printable; None where there is nothing to do.
        since_step: The last sampled step when it was found first.
        last_step: The last sampled step when it was found last.
        is_current: Whether it is found in the last samples.
    """

    rule: str
    layer: str | None
    severity: Severity
    sentence: str
    also: str
    advice: str | None
    since_step: int
    last_step: int
    is_current: bool


class FindingsLog:
    """Runs the rules when there are new samples, seldom enough to cost next to nothing, and keeps what they found.

    Args:
        cpu_clock: CPU time of this process in seconds.
    """

    def __init__(self, cpu_clock: Callable[[], float] = time.process_time) -> None:
        self._cpu_clock = cpu_clock
        self._found: dict[Key, LiveFinding] = {}
        self._samples = 0
        self._next_s = self._next_urgent_s = 0.0
        self._trouble: str | None = None

    def look(self, tail: RunTail, now_s: float, is_last: bool = False, trouble: str | None = None) -> bool:
        """Run the rules on the last samples if there are new ones and it is time; return whether they ran.

        Args:
            tail: The run.
            now_s: A monotonic time in seconds.
            is_last: Whether no sample will come any more, so that there is no sense in waiting.
            trouble: Id of a layer that is in trouble, if any; where it is another than before, they run sooner.
        """
        samples = sum(worker.samples.seen for worker in tail.workers)
        is_urgent = trouble is not None and trouble != self._trouble
        is_due = is_last or now_s >= (self._next_urgent_s if is_urgent else self._next_s)
        if samples == self._samples or not is_due or tail.is_behind:
            return False
        start_s = self._cpu_clock()
        run = tail.recent_run(WINDOW)
        self._take(analyze(Evidence(run)), run.samples[-1].step)
        self._samples, self._trouble = samples, trouble
        took_s = self._cpu_clock() - start_s
        self._next_s, self._next_urgent_s = now_s + took_s / _SHARE, now_s + took_s / _URGENT_SHARE
        return True

    def findings(self) -> tuple[LiveFinding, ...]:
        """Return what was found, current findings first, the worst of them first; then the others, the latest first."""
        found = self._found.values()
        current = sorted((f for f in found if f.is_current), key=lambda f: SEVERITIES.index(f.severity))
        past = sorted((f for f in found if not f.is_current), key=lambda f: -f.last_step)
        return (*current, *past)

    def _take(self, findings: Sequence[Finding], step: int) -> None:
        before, groups = self._found, _grouped(findings)
        past = {key: replace(old, is_current=False) for key, old in before.items() if key not in groups}
        latest = sorted(past, key=lambda key: -past[key].last_step)[:_MOST_PAST]
        self._found = {key: past[key] for key in latest}
        for key, group in groups.items():
            since = before[key].since_step if key in before else step
            self._found[key] = _live_finding(group, since, step)


def _grouped(findings: Sequence[Finding]) -> dict[Key, list[Finding]]:
    """Return the findings by rule and action, the worst of each first, in the order of harm."""
    groups: dict[Key, list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.id, finding.action), []).append(finding)
    return groups


def _live_finding(group: Sequence[Finding], since: int, step: int) -> LiveFinding:
    worst, *others = group
    return LiveFinding(
        rule=worst.id,
        layer=None if worst.layer is None else printable(worst.layer),
        severity=worst.severity,
        sentence=printable(worst.sentence),
        also=f"and {counted(len(others), 'more layer')}" if others else "",
        advice=None if worst.action == "none" else printable(advise(worst)),
        since_step=since,
        last_step=step,
        is_current=True,
    )
