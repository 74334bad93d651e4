"""Scores the proof on the zoo: `python -m benchmarks.proof [NAME ...]`.

Every case of `tests/zoo` is trained for 60 steps under `precscope.profile`, then verified by replay. The table shows
the set that was proven beside the truth, which `python -m tests.zoo.verify_labels` verifies by training. Where another
action than float32 is the answer (another loss scale, say), a set is proven all the same; it is shown and not scored.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import precscope
from tests.zoo.animals import ZOO, case_named
from tests.zoo.case import build
from tests.zoo.training import train_model

if TYPE_CHECKING:
    from tests.zoo.case import Case

_QUIET: dict[str, Any] = {"profile_steps": 0, "device_interval_s": 0.0, "reference": True, "keep_batches_mib": 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="Only these cases.")
    parser.add_argument("--steps", type=int, default=60, help="Train steps before the proof.")
    arguments = parser.parse_args()
    cases = tuple(map(case_named, arguments.names)) if arguments.names else ZOO
    warnings.simplefilter("ignore")  # faults warn, as they should
    right, scored = 0, 0
    print("| case | truth | proven | sets | seconds | |")
    print("|---|---|---|---|---|---|")
    for case in cases:
        verdict = prove(case, arguments.steps)
        scored += verdict is not None
        right += bool(verdict)
    print(f"\nThe proven set is the true one in {right} of {scored} cases.")


def prove(case: Case, steps: int) -> bool | None:
    """Train a case, prove it, print a line; return whether the set is the true one, None where it is not scored."""
    began_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = build(case)
        session = precscope.profile(model, Path(folder) / "run", every=5, **_QUIET)
        train_model(case, model, session, steps)
        trained_s = time.perf_counter()
        try:
            verification = session.verify()
        except precscope.PrecScopeError as error:
            print(f"| `{case.name}` | {named(case.truth)} | – | – | {trained_s - began_s:.0f} | {error} |", flush=True)
            return None
    took_s = time.perf_counter() - trained_s
    pins = frozenset(verification.pins)
    is_scored = case.is_healthy or case.action == "keep_float32"
    tolerated = case.truth <= pins <= case.truth | set(case.extras)
    outcome = "" if not is_scored else "right" if verification.proven and tolerated else "**wrong**"
    shown = named(pins) if verification.proven else "not proven"
    print(
        f"| `{case.name}` | {named(case.truth) or case.action} | {shown} | {verification.trials} | {took_s:.0f} "
        f"| {outcome or case.action} |",
        flush=True,
    )
    return verification.proven and tolerated if is_scored else None


def named(layers: frozenset[str]) -> str:
    return ", ".join(sorted(layers)) or "nothing"


if __name__ == "__main__":
    main()
