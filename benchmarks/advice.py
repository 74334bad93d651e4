"""Scores the advice on the zoo: `python -m benchmarks.advice [NAME ...]`.

Every case of `tests/zoo` is trained for 200 steps under `precscope.profile`, every fifth step sampled. The table shows
what was named beside the truth, which `python -m tests.zoo.verify_labels` verifies by training.

Whether the advice holds is proven and trained by `python -m benchmarks.proof`.

With `--results FILE` each score is a line of JSON there as soon as it is known; cases that the file already holds are
not trained again. `--keep DIRECTORY` keeps the runs, and `--recorded DIRECTORY` scores such runs by the rules as they
are.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import multiprocessing
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import precscope
from tests.zoo.animals import ZOO, case_named
from tests.zoo.score import Score, add_up, profile_case, score_case

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["main"]


@dataclass(frozen=True)
class _Task:
    """How to score one case; sent to another process.

    Attributes:
        name: The case.
        directory: Where its run goes, or lies.
        every: Sample every so many steps.
        recorded: The run lies there; train nothing.
        reference: Let the rules see the reference steps.
    """

    name: str
    directory: Path
    every: int
    recorded: bool
    reference: bool


def _score(task: _Task) -> dict[str, Any]:
    """Return a line of the results, as what JSON can hold."""
    warnings.simplefilter("ignore")
    since = time.perf_counter()
    case, path = case_named(task.name), task.directory / task.name
    run = precscope.open_run(path) if task.recorded else profile_case(case, path, task.every)
    if not task.reference:
        run = replace(run, reference_steps=(), reference=())
    score = score_case(case, run)
    found = {name: getattr(score, name) for name in _PLAIN}
    findings = [
        {key: getattr(finding, key) for key in ("severity", "id", "action", "layer", "sentence")}
        for finding in score.findings
    ]
    return {"case": case.name, **found, "findings": findings, "seconds": time.perf_counter() - since}


_PLAIN = ("named", "found", "to_find", "wrong", "top_is_right", "is_false_alarm")


def _read(line: dict[str, Any]) -> Score:
    """Return the score that a line holds, without its findings."""
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value := line[name], list) else value for name in _PLAIN}
    return Score(case_named(line["case"]), (), **plain)


def _row(line: dict[str, Any]) -> str:
    score = _read(line)
    truth = _names(score.case.truth) if score.case.truth else score.case.action
    top = next((finding for finding in line["findings"] if finding["severity"] != "info"), None)
    first = "" if top is None else f"{top['id']}: {top['action']}" + (f" `{top['layer']}`" if top["layer"] else "")
    verdict = "right" if score.is_right else "**wrong**"
    cells = (score.case.name, truth, _names(score.named), first, verdict, f"{line['seconds']:.0f}")
    return "| " + " | ".join(cells) + " |"


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _lines(tasks: Sequence[_Task], jobs: int, results: Path | None) -> Iterator[dict[str, Any]]:
    """Yield the lines of all tasks in their order: those that `results` holds, and new ones, which are added to it."""
    known = {}
    if results is not None and results.exists():
        known = {line["case"]: line for line in map(json.loads, results.read_text().splitlines())}
    spawn = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
    with ProcessPoolExecutor(jobs, spawn, max_tasks_per_child=1 if jobs > 1 else None) as pool:
        futures = {task.name: pool.submit(_score, task) for task in tasks if task.name not in known}
        if results is not None:
            for future in futures.values():
                future.add_done_callback(lambda future: _append(results, future.result()))
        for task in tasks:
            yield known[task.name] if task.name in known else futures[task.name].result()


def _append(results: Path, line: dict[str, Any]) -> None:
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="cases, all by default")
    parser.add_argument("--every", type=int, default=5, help="sample every so many steps")
    parser.add_argument("--keep", type=Path, help="a new directory for the runs; kept")
    parser.add_argument("--recorded", type=Path, help="score the runs of this directory and train nothing")
    parser.add_argument("--without-reference", action="store_true", help="hide the reference steps from the rules")
    parser.add_argument("--explain", action="store_true", help="print every finding below its case")
    parser.add_argument("--jobs", type=int, default=1, help="so many cases at a time, each in a process of its own")
    parser.add_argument("--results", type=Path, help="a file of JSON lines, to which each score is added")
    return parser.parse_args()


def main() -> None:
    """Print the score, case by case and in all."""
    arguments = _arguments()
    lines = []
    print("| case | truth | kept in float32 | first finding | | s |")
    print("|---|---|---|---|---|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        directory = arguments.recorded or arguments.keep or Path(temporary)
        how = (directory, arguments.every, bool(arguments.recorded), not arguments.without_reference)
        tasks = [_Task(name, *how) for name in arguments.names or [case.name for case in ZOO]]
        for line in _lines(tasks, arguments.jobs, arguments.results):
            lines.append(line)
            print(_row(line), flush=True)
            for finding in line["findings"] if arguments.explain else ():
                print("    {severity:8}{id:22}{action:16}{sentence}".format(**finding))
    scores = [_read(line) for line in lines]
    total = add_up(scores)
    healthy = sum(score.case.is_healthy for score in scores)
    print(f"\nrecall {total.recall:.1%}, precision {total.precision:.1%}, top-1 {total.top_1:.1%} of ", end="")
    print(f"{len(scores) - healthy} faulty cases; {total.false_alarms} false alarms on {healthy} healthy controls")


if __name__ == "__main__":
    main()
