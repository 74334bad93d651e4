"""What is said at the end of a program whose trainings were recorded: where the runs are, and what they came to."""

from __future__ import annotations

import shlex
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["summary"]

_MOST_SHOWN = 12
#: A run is read in some 0.05 s. After this time no more are read: their lines stay without an answer.
_READING_S = 5.0


def summary(runs: Sequence[tuple[Path, str]]) -> str:
    """Return the lines to print: for each run the command that shows its report, and the answer in a sentence.

    Args:
        runs: Run directories, each with the name of the model that trained, in the order in which they began. Of more
            than 12 the last are shown.
    """
    shown = runs[-_MOST_SHOWN:]
    those = "it" if len(runs) == 1 else "them"
    first = f"{len(runs)} {'run was' if len(runs) == 1 else 'runs were'} recorded. "
    first += f"Read {those}:" if len(shown) == len(runs) else f"All lie in {_short(shown[-1][0].parent)}. The last:"
    lines = [first]
    end_s = time.monotonic() + _READING_S
    for path, name in shown:
        lines.append(f"  precscope report {shlex.quote(_short(path))}")
        outcome, *warnings = _outcome(path) if time.monotonic() < end_s else [""]
        lines.append(f"    model {name!r}{outcome}")
        lines += [f"    {warning}" for warning in warnings]
    return "\n".join(lines)


def _outcome(path: Path) -> list[str]:
    """Return a run's length, how it ended and the verdict in words, then its warnings; "" where it cannot be read."""
    with suppress(Exception):  # the report will say what is wrong with it
        from precscope.advice import Evidence, analyze
        from precscope.advice.verdict import give_verdict
        from precscope.advice.wording import counted
        from precscope.reader import open_run

        run = open_run(path)
        evidence = Evidence(run, None)
        last = max((*(sample.step for sample in run.samples), *(look.step for look in run.loss_scales)), default=0)
        steps = f", {counted(last, 'step')}" if last else ""
        ended = "" if run.status == "finished" else f", {run.status}"
        verdict = f"{steps}{ended}: {give_verdict(evidence, analyze(evidence)).sentence}"
        warnings = [f"{notice.level}: {notice.message}" for notice in run.notices if notice.level != "info"]
        return [verdict, *dict.fromkeys(warnings)]
    return [""]


def _short(path: Path) -> str:
    """Return a path as seen from the working directory, where it is below that."""
    with suppress(ValueError, OSError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
