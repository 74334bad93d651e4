"""Trains every configuration of the compatibility matrix without PrecScope and with it, and writes its page.

    python -m tests.compatibility.matrix --jobs 2 --write docs/compatibility.md

Results are kept as JSON lines as they come: a run that was interrupted goes on where it stopped, and several may work
on one file. Rows that are there are not run again, unless with --again. On a machine with a GPU the same command fills
the page's GPU column.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "data" / "compatibility.jsonl"
#: Between two rows a worker ends after this many, for TensorFlow keeps some of what it compiled.
ROWS_A_PROCESS = 25
MORE_TO_DO = 75
MOST_CRASHES = 10
CRASH = {"passed": False, "faults": ["the process crashed"]}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    options = _parser().parse_args(arguments)
    if options.worker:
        return work(options)
    if not options.no_run:
        started = time.time()
        run_workers(options, arguments if arguments is not None else sys.argv[1:])
        print(f"{time.time() - started:.0f} s")
    from tests.compatibility import results
    from tests.compatibility.page import failures, page

    records = results.read(options.results)
    if options.write is not None:
        options.write.write_text(page(records), encoding="utf-8")
    failed = failures(records)
    print(*failed, sep="\n")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the JSON lines (default: %(default)s)")
    parser.add_argument("--write", type=Path, help="write the page here")
    parser.add_argument("--no-run", action="store_true", help="run nothing, only read the results")
    parser.add_argument("--only", default="", help='a regular expression for "group/name/policy"')
    parser.add_argument("--all", action="store_true", help="every member of every family of keras.applications")
    parser.add_argument("--again", action="store_true", help="run rows that are there, too")
    parser.add_argument("--failed", action="store_true", help="run rows again that failed")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes share the rows (default: 1)")
    parser.add_argument("--worker", type=float, default=0, help=argparse.SUPPRESS)  # when the run began
    return parser


def run_workers(options: argparse.Namespace, arguments: list[str]) -> None:
    """Keep `--jobs` workers going until one of each has nothing left; a worker that crashes is replaced."""
    command = [sys.executable, "-m", "tests.compatibility.matrix", *arguments, "--worker", str(time.time())]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_FORCE_GPU_ALLOW_GROWTH": "true"} | os.environ
    workers = [subprocess.Popen(command, cwd=ROOT, env=environment) for _ in range(options.jobs)]
    crashes = 0
    try:
        while workers:
            time.sleep(0.5)
            for position, worker in enumerate(list(workers)):
                code = worker.poll()
                if code is not None:
                    workers.remove(worker)
                    crashes += code not in (0, MORE_TO_DO)
                    if code and crashes <= MOST_CRASHES:
                        workers.insert(position, subprocess.Popen(command, cwd=ROOT, env=environment))
    finally:
        for worker in workers:
            worker.terminate()


def work(options: argparse.Namespace) -> int:
    """Run what nobody else runs; return MORE_TO_DO where there may be more."""
    from tests.compatibility import results
    from tests.compatibility.catalog import rows

    device = describe_device()
    done = 0
    # Each configuration once before any of them under a further policy: an early end leaves the fewest gaps.
    queue = sorted(rows(options.only, options.all), key=lambda row: row[0].policies.index(row[1]))
    for configuration, policy in queue:
        record = {
            "device": device["device"],
            "group": configuration.group,
            "name": configuration.name,
            "policy": policy,
        }
        with results.claimed(options.results, results.key(record)) as claim:
            known = results.read(options.results).get(results.key(record))
            if claim is None or not _is_due(known, options):
                continue
            crashed = claim.died_unix_s is not None and claim.died_unix_s > options.worker  # not by an interruption
            outcome = CRASH if crashed else _outcome(configuration, policy)
            results.append(options.results, record | device | outcome | {"ended_unix_s": round(time.time())})
            _tell(record, outcome)
        done += 1
        if done == ROWS_A_PROCESS:
            return MORE_TO_DO
    return 0


def _is_due(known: dict[str, Any] | None, options: argparse.Namespace) -> bool:
    if known is None:
        return True
    if known["ended_unix_s"] >= options.worker - 1:  # by this very run
        return False
    return options.again or (options.failed and not known.get("passed"))


def _outcome(configuration: Any, policy: str) -> dict[str, Any]:
    from tests.compatibility.judge import judge

    if configuration.missing:
        return {"passed": None, "skipped_for": f"{configuration.missing} is not installed", "faults": []}
    return judge(configuration, policy)


def _tell(record: dict[str, Any], outcome: dict[str, Any]) -> None:
    word = {True: "passed", False: "FAILED", None: "skipped"}[outcome["passed"]]
    print(f"{word} {record['group']} / {record['name']} / {record['policy']}", outcome.get("seconds", ""), flush=True)
    for fault in outcome["faults"]:
        print(f"    {fault}", flush=True)


def describe_device() -> dict[str, Any]:
    """Return "cpu" or "gpu", the device's name and the versions."""
    import keras
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    name = (
        tf.config.experimental.get_device_details(gpus[0]).get("device_name") if gpus else f"{os.cpu_count()} CPU cores"
    )
    versions = f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
    return {"device": "gpu" if gpus else "cpu", "device_name": name, "versions": versions}


if __name__ == "__main__":
    sys.exit(main())
