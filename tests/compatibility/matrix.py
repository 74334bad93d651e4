"""Trains every configuration of the compatibility matrix without PrecScope and with it, and writes its page.

    python -m tests.compatibility.matrix --jobs 2 --write docs/compatibility.md

Results are kept as JSON lines as they come: a run that was interrupted goes on where it stopped, and several may work
on one file. Rows that are there are not run again, unless with --again. On a machine with a GPU the same command fills
the page's GPU column, and --cpu-jobs beside it the other one:

    python -m tests.compatibility.matrix --all --jobs 10 --cpu-jobs 22 --deadline 420 --results host.jsonl
    python -m tests.compatibility.matrix --no-run --merge host.jsonl --write docs/compatibility.md
"""

from __future__ import annotations

import argparse
import importlib
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
    for path in options.merge:
        from tests.compatibility import results

        print(f"{results.merge(path, options.results)} rows of {path}")
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
    parser.add_argument("--cpu-jobs", type=int, default=0, help="beside them, how many that see no GPU (default: 0)")
    parser.add_argument("--gpus", type=int, default=1, help="on how many GPUs the jobs are spread (default: 1)")
    parser.add_argument("--threads", type=int, help="TensorFlow's threads in a job (default: its share of the cores)")
    parser.add_argument("--deadline", type=float, metavar="SECONDS", help="begin no row after so long")
    parser.add_argument("--merge", type=Path, nargs="+", default=[], metavar="FILE", help="first add these results")
    parser.add_argument("--worker", type=float, default=0, help=argparse.SUPPRESS)  # when the run began
    return parser


def run_workers(options: argparse.Namespace, arguments: list[str]) -> None:
    """Keep the workers going until none has anything left; one that crashes is replaced."""
    command = [sys.executable, "-m", "tests.compatibility.matrix", *arguments, "--worker", str(time.time())]

    def start(environment: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, cwd=ROOT, env=environment)

    workers = {start(environment): environment for environment in environments(options)}
    crashes = 0
    try:
        while workers:
            time.sleep(0.5)
            for worker, environment in list(workers.items()):
                code = worker.poll()
                if code is not None:
                    del workers[worker]
                    crashes += code not in (0, MORE_TO_DO)
                    if code and crashes <= MOST_CRASHES:
                        workers[start(environment)] = environment
    finally:
        for worker in workers:
            worker.terminate()


def environments(options: argparse.Namespace) -> list[dict[str, str]]:
    """Return the environment of each worker: which GPU it sees, and its share of the cores as TensorFlow's threads.

    What the caller's environment says of threads and logs counts.
    """
    jobs = options.jobs + options.cpu_jobs
    threads = str(options.threads or max(1, cpu_cores() // max(1, jobs)))
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    common = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_FORCE_GPU_ALLOW_GROWTH": "true"} | dict.fromkeys(names, threads)
    common |= os.environ
    seen = common.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(options.gpus)))).split(",")
    spread = [
        {"CUDA_VISIBLE_DEVICES": seen[job % len(seen)]} if options.gpus > 1 else {} for job in range(options.jobs)
    ]
    return [common | own for own in [*spread, *[{"CUDA_VISIBLE_DEVICES": ""}] * options.cpu_jobs]]


def cpu_cores() -> int:
    """Return how many cores this process may use, which is less than the machine has where it is confined."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work(options: argparse.Namespace) -> int:
    """Run what nobody else runs; return MORE_TO_DO where there may be more."""
    from tests.compatibility import results
    from tests.compatibility.catalog import rows

    device = describe_device()
    done = 0
    queue = in_order(rows(options.only, options.all), results.read(options.results) | results.read(RESULTS))
    for configuration, policy in queue:
        if options.deadline is not None and time.time() - options.worker > options.deadline:
            return 0
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


def in_order(queue: list[tuple[Any, str]], known: dict[tuple[str, ...], dict[str, Any]]) -> list[tuple[Any, str]]:
    """Return rows in the order in which they are begun.

    Each configuration once before any of them under a further policy: an early end leaves the fewest gaps. Among
    those the longest first, as measured on whatever device, so that none is left for the end; what was never measured
    comes before them.
    """
    seconds: dict[tuple[str, ...], float] = {}
    for row, record in known.items():
        seconds[row[1:]] = max(seconds.get(row[1:], 0.0), record.get("seconds", 0.0))

    def place(row: tuple[Any, str]) -> tuple[int, float]:
        configuration, policy = row
        took = seconds.get((configuration.group, configuration.name, policy), float("inf"))
        return configuration.policies.index(policy), -took

    return sorted(queue, key=place)


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
    try:
        importlib.import_module(configuration.needs or "keras")
    except Exception as error:  # made for another version of something
        reason = f"{configuration.needs} cannot be imported here: {type(error).__name__}: {error}"
        return {"passed": None, "skipped_for": " ".join(reason.split())[:200], "faults": []}
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
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name") if gpus else f"{cpu_cores()} CPU cores"
    versions = f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
    return {"device": "gpu" if gpus else "cpu", "device_name": name, "versions": versions}


if __name__ == "__main__":
    sys.exit(main())
