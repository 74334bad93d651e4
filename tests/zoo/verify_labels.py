"""Verifies the zoo's labels by training: `python -m tests.zoo.verify_labels [NAME ...]` prints a table.

Each case is trained for 200 steps in float32; under its own policy, where a fault must fail, a healthy control must
track float32, and infinities and NaN must begin at the step that the label names; with its truth kept in float32, which
must track; with the truth less any one layer, which must fail; and repaired by its action, which must track float32 (a
float32 training of the repaired data, where it is the data that are mended).
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.zoo.animals import ZOO, case_named
from tests.zoo.training import Outcome, train

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.zoo.case import Case

__all__ = ["Trial", "trials"]


@dataclass(frozen=True)
class Trial:
    """One training beside float32.

    Attributes:
        what: Which one.
        outcome: How it went.
        distance: Of the final loss to float32's, as a share of it.
        tracks: Whether that is within the case's bound.
        as_labelled: Whether that is what the label says.
    """

    what: str
    outcome: Outcome
    distance: float
    tracks: bool
    as_labelled: bool


def trials(case: Case) -> Iterator[Trial]:
    """Train the case in every way that its label speaks about."""
    reference = train(case, "float32")
    yield _trial(case, "float32", reference, reference, should_track=True)
    plain = _trial(case, f"plain {case.policy}", train(case), reference, should_track=case.is_healthy)
    begins = plain.outcome.first_bad_step
    if begins is not None and case.direction == "backward" and not plain.outcome.skips:
        begins -= 1  # nothing skipped the bad gradient, and the loss showed it a step later
    begins_as_labelled = begins == case.first_bad_step
    yield replace(plain, as_labelled=plain.as_labelled and begins_as_labelled)
    if case.truth:
        yield _trial(case, "truth in float32", train(case, float32=case.truth), reference, should_track=True)
    for left_out in sorted(case.truth) if len(case.truth) > 1 else ():
        outcome = train(case, float32=case.truth - {left_out})
        yield _trial(case, f"the same less {left_out}", outcome, reference, should_track=False)
    if case.repair:
        repaired = replace(case, **{"repair": {}, **case.repair})
        goal = train(repaired, "float32") if "data" in case.repair else reference
        yield _trial(case, "repaired", train(repaired), goal, should_track=True)
    for layer_id in sorted(case.suspects) if "keep_float32" in case.also_right else ():
        yield _trial(case, f"{layer_id} in float32", train(case, float32=[layer_id]), reference, should_track=True)


def _trial(case: Case, what: str, outcome: Outcome, reference: Outcome, *, should_track: bool) -> Trial:
    distance = outcome.distance_to(reference)
    tracks = distance <= case.bound
    return Trial(what, outcome, distance, tracks, tracks == should_track)


def main() -> int:
    """Print every trial; return 1 where one does not agree with its label."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="cases, all by default")
    names = parser.parse_args().names
    wrong = 0
    print("| case | training | final loss | off float32 by | skipped | first bad step | as labelled | s |")
    print("|---|---|---:|---:|---:|---:|---|---:|")
    for case in [case_named(name) for name in names] or ZOO:
        since = time.perf_counter()
        for trial in trials(case):
            outcome, seconds = trial.outcome, time.perf_counter() - since
            since = time.perf_counter()
            wrong += not trial.as_labelled
            bad = "" if outcome.first_bad_step is None else f"step {outcome.first_bad_step}"
            print(
                f"| {case.name} | {trial.what} | {outcome.final_loss:.4g} | {trial.distance:.2%} "
                f"| {len(outcome.skips)} | {bad} | {'yes' if trial.as_labelled else '**NO**'} | {seconds:.1f} |",
                flush=True,
            )
    print(f"\n{wrong} trainings do not agree with their labels.")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
