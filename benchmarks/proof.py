"""Proves the advice on the zoo, and trains by it: `python -m benchmarks.proof [NAME ...]`.

Each case of `tests/zoo` is

1. trained for 200 steps under `precscope.profile`, every fifth step sampled, with reference steps and kept batches;
2. proven: `session.verify()` replays batches, beginning with what the report advises, and writes `policy.yaml`;
3. trained three times more from the same start, without PrecScope: in float32, under its own policy as it is, and with
   `policy.yaml` applied. A fault is repaired where the last tracks float32 (final loss within 2 %), and the second not.

    python -m benchmarks.proof --jobs 16 --results proof.jsonl   # one line of JSON a case; not done again
    python -m benchmarks.proof --table proof.jsonl               # the Markdown of docs/benchmarks.md

The final loss is the mean over the last 16 steps. Where the answer is not float32 but another loss scale, say, a policy
file cannot give it: what was proven is shown, and does not count.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import math
import multiprocessing
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tests.zoo.case import Case
    from tests.zoo.training import Outcome

__all__ = ["main", "prove", "table"]

_WITHIN = 0.02  # of float32's final loss: the target
_BY_POLICY = ("keep_float32", "wrap_optimizer", "none")  # actions that a policy file carries out
_RECORDING: dict[str, Any] = {
    "every": 5,
    "reference": True,
    "keep_batches_mib": 64,
    "profile_steps": 0,
    "device_interval_s": 0.0,
}


@dataclass(frozen=True)
class _Task:
    """One case, sent to a process of its own.

    Attributes:
        name: The case.
        steps: Train steps of each training.
        threads: That TensorFlow may use for one operation; 0 for all cores.
    """

    name: str
    steps: int
    threads: int


def prove(task: _Task) -> dict[str, Any]:
    """Record, prove and train a case; return the line of its results, as JSON can hold it."""
    import tensorflow as tf

    import precscope
    from tests.zoo.animals import case_named
    from tests.zoo.case import build
    from tests.zoo.training import train, train_model

    warnings.simplefilter("ignore")  # faults warn, as they should
    if task.threads:
        tf.config.threading.set_intra_op_parallelism_threads(task.threads)
    began_s = time.perf_counter()
    case = case_named(task.name)
    line: dict[str, Any] = {"case": case.name, "steps": task.steps, "versions": _versions(), "error": None}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        model = build(case)
        session = precscope.profile(model, path, **_RECORDING)
        train_model(case, model, session, task.steps)
        try:
            proof = session.verify()
        except precscope.PrecScopeError as error:
            return line | {"error": str(error), "seconds": time.perf_counter() - began_s}
        line |= {name: getattr(proof, name) for name in ("proven", "is_minimal", "pins", "suspects", "trials")}
        line |= {"cosine": None if proof.after is None else proof.after.worst.cosine, "verify_s": proof.took_s}
        line |= _how_it_passes(proof)
        line |= {"why_plain_fails": None if proof.before.passed else proof.before.worst.why_not}
        float32, plain = train(case, "float32", steps=task.steps), train(case, steps=task.steps)
        repaired = build(case)
        precscope.apply_policy(repaired, path / "policy.yaml")
        by_policy = train_model(case, repaired, steps=task.steps)
    line |= {"float32": _figures(float32, float32), "plain": _figures(plain, float32)}
    return line | {"policy": _figures(by_policy, float32), "seconds": time.perf_counter() - began_s}


def _figures(outcome: Outcome, float32: Outcome) -> dict[str, Any]:
    """Return final loss, its distance to float32's and the skipped steps; None for what is not finite."""
    loss, distance = outcome.final_loss, outcome.distance_to(float32)
    return {
        "final_loss": loss if math.isfinite(loss) else None,
        "off_by": distance if math.isfinite(distance) else None,
        "skipped": len(outcome.skips),
    }


def _how_it_passes(proof: Any) -> dict[str, Any]:
    """Return which rule passed the proven set, and the loss scale that its policy begins with where that fell."""
    if proof.after is None:
        return {"passed_as_noise": 0, "added_variance": None, "moved_mean": None, "settled_scale": None}
    excused = proof.after.passed_as_noise
    return {
        "passed_as_noise": len(excused),
        "added_variance": max((replay.added_variance for replay in excused), default=None),
        "moved_mean": max((replay.moved_mean for replay in excused), default=None),
        "settled_scale": proof.after.settled_scale,
    }


def _versions() -> str:
    import keras
    import tensorflow as tf

    return f"TensorFlow {tf.__version__}, Keras {keras.__version__}"


# The table.


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown of all lines, in the order of the zoo, with the sums below."""
    from tests.zoo.animals import ZOO

    by_name = {line["case"]: line for line in lines}
    found = [(case, by_name[case.name]) for case in ZOO if case.name in by_name]
    head = (
        "| case | truth | proven in float32 | sets | float32: final loss | plain: off by | proven policy: off by "
        "| plain, policy: steps skipped | |",
        "|---|---|---|---:|---:|---:|---:|---|---|",
    )
    return "\n".join([*head, *(_row(case, line) for case, line in found), "", *_sums(found)])


def _row(case: Case, line: dict[str, Any]) -> str:
    truth = _names(case.truth) or case.action
    if line["error"] is not None:
        return f"| {case.name} | {truth} | {line['error']} | | | | | | **not proven** |"
    proven = (_names(line["pins"]) or "nothing") if line["proven"] else "not proven"
    proven += " (rounding within the noise)" if line.get("passed_as_noise") else ""
    skipped = f"{line['plain']['skipped']}, {line['policy']['skipped']}"
    cells = (case.name, truth, proven, line["trials"], f"{line['float32']['final_loss']:.4g}")
    ends = (_off(line["plain"]), _off(line["policy"]), skipped, _verdict(case, line))
    return "| " + " | ".join(map(str, (*cells, *ends))) + " |"


def _off(figures: dict[str, Any]) -> str:
    return "not finite" if figures["off_by"] is None else f"{figures['off_by']:.2%}"


def _verdict(case: Case, line: dict[str, Any]) -> str:
    if case.action not in _BY_POLICY:
        return f"{case.action}: not by a policy file"
    if not line["proven"]:
        return "**not proven**"
    if not _tracks(line["policy"]):
        return "**does not track float32**"
    return "tracks" if case.is_healthy else "repaired" if not _tracks(line["plain"]) else "tracks, and so does plain"


def _tracks(figures: dict[str, Any]) -> bool:
    return figures["off_by"] is not None and figures["off_by"] <= _WITHIN


def _sums(found: Sequence[tuple[Case, dict[str, Any]]]) -> Iterator[str]:
    counted = [(case, line) for case, line in found if case.action in _BY_POLICY]
    faulty = [(case, line) for case, line in counted if not case.is_healthy]
    healthy = [(case, line) for case, line in counted if case.is_healthy]
    for what, cases in (("faulty cases that a policy file can repair", faulty), ("healthy controls", healthy)):
        if not cases:
            continue
        good = [(case, line) for case, line in cases if line["error"] is None and line["proven"]]
        tracking = [(case, line) for case, line in good if _tracks(line["policy"])]
        text = f"{len(cases)} {what}: {len(good)} proven; {len(tracking)} track float32 within {_WITHIN:.0%}"
        if what.startswith("faulty"):
            text += f", {sum(not _tracks(line['plain']) for _, line in tracking)} of them where plain does not"
            exact = sum(set(line["pins"]) == case.truth for case, line in good)
            text += f"; {exact} with just the truth"
        else:
            text += f", {sum(not line['pins'] for _, line in good)} with nothing in float32"
        yield f"{text}."
    if len(found) > len(counted):
        yield f"{len(found) - len(counted)} cases need what a policy file cannot give."


def _names(layers: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(layers))


# Running them.


def run_all(tasks: Sequence[_Task], jobs: int, results: Path | None) -> Iterator[dict[str, Any]]:
    """Yield a line for each task, as they end; each is added to the file at once. A task that raises is told there."""
    spawn = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
    with ProcessPoolExecutor(jobs, spawn, max_tasks_per_child=1) as pool:
        futures = {pool.submit(prove, task): task for task in tasks}
        for future in as_completed(futures):
            task, error = futures[future], future.exception()
            # Not written: it is to be tried again.
            line = {"case": task.name, "error": f"{type(error).__name__}: {error}", "seconds": 0.0} if error else None
            if line is None:
                line = future.result()
                if results is not None:
                    with results.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
            yield line


def read_lines(file: Path | None) -> list[dict[str, Any]]:
    """Return the lines of a file of results; none where there is no such file."""
    if file is None or not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="cases, all by default")
    parser.add_argument("--steps", type=int, default=200, help="train steps of each training (200)")
    parser.add_argument("--jobs", type=int, default=1, help="so many cases at a time, each in a process of its own")
    parser.add_argument("--results", type=Path, help="a file of JSON lines; cases that it holds are not done again")
    parser.add_argument("--table", type=Path, help="print the table of such a file, and run nothing")
    parser.add_argument("--gpu", action="store_true", help="let TensorFlow see the GPUs")
    return parser.parse_args()


def main() -> int:
    """Run the cases and print their table; return 1 where one of them raised."""
    arguments = _arguments()
    if not arguments.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from tests.zoo.animals import ZOO, case_named

    if arguments.table is not None:
        print(table(read_lines(arguments.table)))
        return 0
    cases = [case_named(name) for name in arguments.names] or ZOO
    lines = {line["case"]: line for line in read_lines(arguments.results)}
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs) if arguments.jobs > 1 else 0
    tasks = [_Task(case.name, arguments.steps, threads) for case in cases if case.name not in lines]
    failed = 0
    for line in run_all(tasks, arguments.jobs, arguments.results):
        lines[line["case"]] = line
        failed += "proven" not in line and line["seconds"] == 0.0
        outcome = line["error"] or (f"proven: {_names(line['pins'])}" if line["proven"] else "not proven")
        print(f"{line['case']}: {outcome} ({line['seconds']:.0f} s)", file=sys.stderr, flush=True)
    print(table([lines[case.name] for case in cases]))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
