"""How often the origin of NaN and infinity is right: each case of the zoo that goes non-finite, under a session.

    python -m benchmarks.origin [NAME ...]         # all cases by default, with the tripwire
    python -m benchmarks.origin --no-tripwire      # samples and the poll alone: the step is the first that was sampled

A case is right where the run's main origin names the labelled layer and pass, and exactly the labelled step. Where the
label names no single layer, any layer in the labelled pass is right.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from precscope.origin_records import OriginRecord
    from tests.zoo.case import Case

__all__ = ["Score", "faulty_cases", "score"]

STEPS = 60


@dataclass(frozen=True)
class Score:
    """What was found of one case, beside its label."""

    case: Case
    origin: OriginRecord | None
    seconds: float

    @property
    def layer_is_right(self) -> bool:
        """Whether the labelled layer was named; of a loss whose gradient overflowed, the layer where that arrives."""
        label, origin = self.case.source_layer, self.origin
        if origin is None:
            return False
        return label is None or label in (origin.layer, origin.arrives_at if origin.cause == "loss" else None)

    @property
    def direction_is_right(self) -> bool:
        """Whether the labelled pass was named."""
        return self.origin is not None and self.case.direction in (None, self.origin.direction)

    @property
    def step_is_exact(self) -> bool:
        """Whether the labelled step was named."""
        return self.origin is not None and self.origin.step == self.case.first_bad_step

    @property
    def is_right(self) -> bool:
        """Whether layer and pass are right."""
        return self.layer_is_right and self.direction_is_right


def faulty_cases() -> list[Case]:
    """Return the cases in which something becomes infinite or NaN, healthy controls left aside."""
    from tests.zoo.animals import ZOO

    return [case for case in ZOO if case.goes_nonfinite and not case.is_healthy]


def score(case: Case, tripwire: bool = True, steps: int = STEPS, run_dir: Path | None = None) -> Score:
    """Train a case under a session, and compare what it recorded with the label."""
    import precscope
    from precscope.advice.origin_account import main_origin
    from tests.zoo.case import build
    from tests.zoo.training import train_model

    options: dict[str, Any] = {"reference": False, "profile_steps": 0, "device_interval_s": 0.0, "tripwire": tripwire}
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "run" if run_dir is None else run_dir
        model = build(case)
        train_model(case, model, precscope.profile(model, path, **options), steps)
        origin = main_origin(precscope.open_run(path).origins)
    return Score(case, origin, time.perf_counter() - begin)


def main() -> int:
    """Print a table; return 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--no-tripwire", action="store_true")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    cases = [case for case in faulty_cases() if not arguments.names or case.name in arguments.names]
    print("| case | label | found | layer and pass | step | s |")
    print("|---|---|---|---|---|---:|")
    scores = []
    for case in cases:
        one = score(case, not arguments.no_tripwire, arguments.steps)
        scores.append(one)
        label = f"{case.source_layer or 'no single layer'}, {case.direction}, step {case.first_bad_step}"
        print(f"| {case.name} | {label} | {_found(one.origin)} | {_yes(one.is_right)} ", end="")
        print(f"| {_yes(one.step_is_exact)} | {one.seconds:.1f} |", flush=True)
    right, exact = sum(one.is_right for one in scores), sum(one.step_is_exact for one in scores)
    print(f"\nlayer and pass right: {right} of {len(scores)}; step exact: {exact} of {len(scores)}")
    return int(right < len(scores) or (exact < len(scores) and not arguments.no_tripwire))


def _found(origin: OriginRecord | None) -> str:
    if origin is None:
        return "nothing"
    where = origin.layer or origin.arrives_at or "–"
    at = f" at {origin.arrives_at}" if origin.arrives_at not in (None, where) else ""
    return f"{origin.cause}: {where}{at}, {origin.direction}, step {origin.step} ({origin.noticed_by})"


def _yes(is_right: bool) -> str:
    return "yes" if is_right else "**NO**"


if __name__ == "__main__":
    sys.exit(main())
