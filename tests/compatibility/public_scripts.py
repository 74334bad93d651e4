"""Runs example scripts that others published, unmodified, with and without `precscope run`, and says what came of it.

    python -m tests.compatibility.public_scripts --policy float32 --policy mixed_float16 examples/*.py

Each script runs in a new folder of its own, with data made to the shapes that it expects (`script_surroundings`). The
scripts are not part of this repository: give the paths of copies. `docs/run_scripts.md` names those that were tried.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from precscope.errors import PrecScopeError
from precscope.reader import open_run
from tests.compatibility.script_surroundings import environment, make_data

_OURS = re.compile(r"^precscope: .*(?:\n  .*)*\n", re.MULTILINE)
_LOGGED = re.compile(r"WARNING: All log|[IWE]\d{4} |To enable the following instructions")
_PROGRESS = re.compile(r"[^\n]*\d+/(\d+|Unknown)[^\n]*(step|━)[^\n]*\n?")
_NUMBER = re.compile(r"\d+\.\d+(e-?\d+)?")


def main() -> int:
    """Run every script under every policy, and print one JSON record for each."""
    options = _arguments()
    work = Path(options.work or tempfile.mkdtemp(prefix="public_scripts_")).absolute()
    make_data(work / "keras_home", options.images)
    jobs = [(script.absolute(), policy) for policy in options.policy or ["float32"] for script in options.scripts]
    with ThreadPoolExecutor(options.jobs) as pool:
        for record in pool.map(lambda job: _tried(job[0], job[1], work, options), jobs):
            text = json.dumps(record)
            print(text, flush=True)
            if options.results:
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(text + "\n")
    if options.work is None:
        shutil.rmtree(work)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="+", type=Path)
    parser.add_argument("--policy", action="append", help="a Keras dtype policy; may be given again")
    parser.add_argument("--images", type=int, default=3000, help="images to train with; a script may hold back 10,000")
    parser.add_argument("--epochs", type=int, help="no fit trains longer, by Keras' own KERAS_MAX_EPOCHS")
    parser.add_argument("--steps", type=int, help="no epoch is longer, by Keras' own KERAS_MAX_STEPS_PER_EPOCH")
    parser.add_argument("--path", action="append", default=[], help="a folder with packages that the scripts import")
    parser.add_argument("--jobs", type=int, default=1, help="scripts at a time; with more than one, times say little")
    parser.add_argument("--limit-s", type=int, default=1200, help="seconds after which a run is ended")
    parser.add_argument("--set", action="append", default=[], help="an option for `precscope run`")
    parser.add_argument("--work", help="a folder to keep: what the scripts wrote, their output, the runs")
    parser.add_argument("--results", type=Path, help="a file to which the records are added")
    return parser.parse_args()


def _tried(script: Path, policy: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    folder = work / f"{script.stem}-{policy}"
    shutil.rmtree(folder, ignore_errors=True)
    limits = {"KERAS_MAX_EPOCHS": options.epochs, "KERAS_MAX_STEPS_PER_EPOCH": options.steps}
    surroundings = environment(work / "keras_home", work / "site", policy, options.path, limits)
    python = [sys.executable]
    settings = [word for setting in options.set for word in ("--set", setting)]
    ours = [sys.executable, "-c", "from precscope.cli import run; run()", "run", *settings]
    plain = _run([*python, str(script)], folder / "plain", surroundings, options.limit_s)
    watched = _run([*ours, str(script)], folder / "watched", surroundings, options.limit_s)
    return {
        "script": script.name,
        "sha256": hashlib.sha256(script.read_bytes()).hexdigest(),
        "policy": policy,
        "limits": {name: value for name, value in limits.items() if value is not None},
        "exit": [plain["exit"], watched["exit"]],
        "seconds": [plain["seconds"], watched["seconds"]],
        "cpu_seconds": [plain["cpu_seconds"], watched["cpu_seconds"]],
        "same_stdout": _same(plain["stdout"]) == _same(watched["stdout"]),
        "same_stderr": _errors(plain["stderr"]) == _errors(_OURS.sub("", watched["stderr"])),
        "told": [line for found in _OURS.findall(watched["stderr"]) for line in found.splitlines()],
        "last_line": (plain["stderr"].strip().splitlines() or [""])[-1],
        "runs": [_recorded(path) for path in sorted((folder / "watched" / "runs").glob("*"))],
        "cpu_cores": os.cpu_count(),
    }


def _run(command: list[str], folder: Path, surroundings: dict[str, str], limit_s: float) -> dict[str, Any]:
    """Run a command in a new folder, which keeps its output."""
    folder.mkdir(parents=True)
    begun, used = time.perf_counter(), _children_cpu_s()
    with (folder / "stdout.txt").open("w") as out, (folder / "stderr.txt").open("w") as err:
        try:
            done = subprocess.run(
                command, cwd=folder, env=surroundings, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                timeout=limit_s, check=False,
            )  # fmt: skip
            code: int | None = done.returncode
        except subprocess.TimeoutExpired:
            code = None
    seconds = round(time.perf_counter() - begun, 1)
    cpu_seconds = round(_children_cpu_s() - used, 1)
    texts = {name: (folder / f"{name}.txt").read_text(errors="replace") for name in ("stdout", "stderr")}
    return {"exit": code, "seconds": seconds, "cpu_seconds": cpu_seconds, **texts}


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _same(text: str) -> list[str]:
    """Return output without what differs between any two trainings: progress bars, times, losses."""
    return _NUMBER.sub("N", _PROGRESS.sub("", text.replace("\x08", ""))).splitlines()


def _errors(text: str) -> list[str]:
    """Return what stderr says, without the lines of TensorFlow's own log, which bear times and process ids."""
    return [line for line in text.splitlines() if not _LOGGED.match(line)]


def _recorded(path: Path) -> dict[str, Any]:
    try:
        run = open_run(path)
    except PrecScopeError as error:
        return {"run": path.name, "error": str(error)}
    return {
        "run": path.name,
        "status": run.status,
        "samples": len(run.samples),
        "last_sampled_step": max((sample.step for sample in run.samples), default=None),
        "layers": len(run.layers),
        "seen": [sum(not getattr(layer, name) for layer in run.layers) for name in ("unseen", "gradient_unseen")],
        "unseen": sorted({f"{layer.type}: {layer.unseen}" for layer in run.layers if layer.unseen}),
        "gradient_unseen": sorted(
            {f"{layer.type}: {layer.gradient_unseen}" for layer in run.layers if layer.gradient_unseen}
        ),
        "weight_gradients": len(run.find(kind="weight_gradient")),
        "notices": [f"{notice.level} {notice.source}: {notice.message}" for notice in run.notices],
        "costs_s": {cost.kind: round(cost.time_ns / 1e9, 2) for cost in run.costs},
    }


if __name__ == "__main__":
    sys.exit(main())
