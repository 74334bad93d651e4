"""`precscope bench`: a user's training under several dtype policies, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from precscope.errors import OptionsError, PrecScopeError

if TYPE_CHECKING:
    from precscope.bench_result import BenchResult
    from precscope.probes.bench import BenchPlan

__all__ = ["bench", "bench_and_print"]

_FILE = "bench.json"
_POLICIES = "float32,mixed_float16,mixed_bfloat16"

Format = Literal["table", "json"]


@click.command("bench")
@click.argument("entry", metavar="MODULE:FUNCTION")
@click.option("--policies", default=_POLICIES, show_default=True, help="Names of dtype policies, with commas between.")
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Steps in a round.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Rounds of each policy.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds that a policy may take for one "
              "answer: building, compiling, a round.  [default: no limit]")  # fmt: skip
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help=f"Write {_FILE} into this directory.")
@click.option("--overwrite", is_flag=True, help=f"Replace the {_FILE} that the directory holds.")
@click.option("--format", "output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def bench(
    entry: str,
    policies: str,
    steps: int,
    repeats: int,
    timeout: float | None,
    out: Path | None,
    overwrite: bool,
    output: Format,
) -> None:
    """Measure a training under several dtype policies.

    FUNCTION takes no arguments and returns a compiled Keras model and a tf.data.Dataset of its batches. It is called
    once for each policy, in a process of its own, after the policy was set for all of Keras. Instead of a module a
    file may be named: train.py:build. See docs/bench.md.
    """
    names = tuple(name.strip() for name in policies.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise OptionsError(f"--policies {policies!r}: expected different names with commas between, as in {_POLICIES}.")
    target = None if out is None else _target(out, overwrite)
    bench_and_print(
        entry, policies=names, steps=steps, repeats=repeats, timeout_s=timeout, target=target, output=output
    )


def bench_and_print(
    entry: str,
    *,
    policies: tuple[str, ...] = tuple(_POLICIES.split(",")),
    steps: int = 20,
    repeats: int = 5,
    timeout_s: float | None = None,
    target: Path | None = None,
    output: Format = "table",
) -> None:
    """Run a bench with a progress bar on stderr, print what it measured, and write it to `target`.

    Raises:
        PrecScopeError: The build function cannot be had, or no policy could be measured.
    """
    from precscope.bench_result import bench_json
    from precscope.probes.bench import BenchPlan

    result = _run(BenchPlan(entry, policies, steps, repeats, timeout_s=timeout_s))
    if all(policy.step_time_ms is None for policy in result.policies):
        reasons = dict.fromkeys(policy.error or "it ran no step" for policy in result.policies)
        raise PrecScopeError(f"Under none of {', '.join(policies)} could a step be timed. {' / '.join(reasons)}")
    text = bench_json(result)
    if output == "json":
        click.echo(text)
    else:
        from precscope.reports.terminal_bench import print_bench

        print_bench(result)
    if target is not None:
        _write(target, text)
        click.echo(f"Written to {target}", err=True)


def _run(plan: BenchPlan) -> BenchResult:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from precscope.probes.bench import run_bench

    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=plan.units)
        return run_bench(plan, lambda words, units: progress.update(task, description=words, advance=units))


def _target(folder: Path, overwrite: bool) -> Path:
    """Return the file to write, before an hour of measuring shows that it cannot be written."""
    target = folder / _FILE
    if target.exists() and not overwrite:
        raise OptionsError(f"'{target}' exists. Name another directory, or replace it with --overwrite.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionsError(f"--out '{folder}' cannot be made: {error.strerror}.") from None
    return target


def _write(target: Path, text: str) -> None:
    partial = target.with_suffix(".partial")
    try:
        partial.write_text(f"{text}\n", encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        raise OptionsError(f"'{target}' cannot be written: {error.strerror}.") from None
