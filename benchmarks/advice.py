"""Scores the advice on the zoo: `python -m benchmarks.advice [NAME ...]`.

Every case of `tests/zoo` is trained for 200 steps under `precscope.profile`, every fifth step sampled. The table shows
what was named beside the truth, which `python -m tests.zoo.verify_labels` verifies by training.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from tests.zoo.animals import ZOO, case_named
from tests.zoo.score import add_up, profile_case, score_case

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.zoo.score import Score

__all__ = ["main"]


def _row(score: Score, seconds: float) -> str:
    case = score.case
    truth = _names(case.truth) if case.truth else case.action
    top = next((f for f in score.findings if f.severity != "info"), None)
    first = "" if top is None else f"{top.id}: {top.action}" + (f" `{top.layer}`" if top.layer else "")
    verdict = "right" if score.is_right else "**wrong**"
    proof = {None: "", True: _names(score.proven_layers) or "nothing", False: "not proven"}[score.proven]
    cells = (case.name, truth, _names(score.named), first, verdict, proof, f"{seconds:.0f}")
    return "| " + " | ".join(cells) + " |"


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def main() -> None:
    """Print the score, case by case and in all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="cases, all by default")
    parser.add_argument("--every", type=int, default=5, help="sample every so many steps")
    parser.add_argument("--keep", type=Path, help="a new directory for the runs; kept")
    parser.add_argument("--prove", action="store_true", help="replay the advice too, which takes several times as long")
    parser.add_argument("--explain", action="store_true", help="print every finding below its case")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    scores: list[Score] = []
    print("| case | truth | kept in float32 | first finding | | proven by replay | s |")
    print("|---|---|---|---|---|---|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        directory = arguments.keep or Path(temporary)
        for case in [case_named(name) for name in arguments.names] or ZOO:
            since = time.perf_counter()
            scores.append(
                score_case(case, profile_case(case, directory / case.name, arguments.every, prove=arguments.prove))
            )
            print(_row(scores[-1], time.perf_counter() - since), flush=True)
            for finding in scores[-1].findings if arguments.explain else ():
                print(f"    {finding.severity:8}{finding.id:22}{finding.action:16}{finding.sentence}")
    total = add_up(scores)
    healthy = sum(score.case.is_healthy for score in scores)
    print(f"\nrecall {total.recall:.1%}, precision {total.precision:.1%}, top-1 {total.top_1:.1%} of ", end="")
    print(f"{len(scores) - healthy} faulty cases; {total.false_alarms} false alarms on {healthy} healthy controls")


if __name__ == "__main__":
    main()
