"""`precscope verify`: whether the layers that a run's findings name suffice, and whether fewer would."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Progress

__all__ = ["verify"]

_NOT_PROVEN = 1
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_DEFAULTS = ("mixed_float16", "mixed_bfloat16")


@click.command("verify")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--model", "entry", metavar="MODULE:FUNCTION", required=True, help="Builds the run's model, compiled.")
@click.option("--weights", metavar="FILE", type=_FILE, help="Load these weights into the model.")
@click.option(
    "--default",
    type=click.Choice(_DEFAULTS),
    help="The default policy to test.  [default: the run's own; mixed_float16 of a run in float32]",
)
@click.option("--batches", type=click.IntRange(min=1), default=3, show_default=True, help="Replay at most so many.")
@click.option(
    "--most-sets", type=click.IntRange(min=1), default=60, show_default=True, help="Try at most so many sets."
)
@click.option("--most-minutes", type=click.FloatRange(min=0), help="Try no further set after so many minutes.")
@click.pass_context
def verify(
    context: click.Context,
    run_dir: Path,
    entry: str,
    weights: Path | None,
    default: str | None,
    batches: int,
    most_sets: int,
    most_minutes: float | None,
) -> None:
    """Prove by replay which layers of the run in RUN_DIR have to stay in float32, and price them.

    Batches that the run kept (precscope.profile(..., keep_batches_mib=64)) go forward and backward, without an update,
    in float32, in plain mixed precision and with the layers in float32 that the findings name. The set grows while it
    fails and shrinks while it passes. FUNCTION takes no arguments and returns the compiled Keras model, or that and a
    tf.data.Dataset of batches for a run that kept none, or of a custom loop the model, its optimizer and the step
    function; a file may be named instead of a module: train.py:build.

    Of a run in float32 it proves what mixed_float16 would need.

    The outcome goes into the run directory, where report, policy and the page find it. Exit code 1 where nothing was
    proven. See docs/verify.md.
    """
    from precscope.probes.tensorflow_startup import load_tensorflow
    from precscope.reader import open_run

    run = open_run(run_dir)
    click.echo("Loading TensorFlow ...")
    load_tensorflow()
    from precscope.probes.verify_session import POLICY_FILE, verify_entry
    from precscope.reports.terminal_proof import print_proof

    options = {
        "default": default,
        "most_batches": batches,
        "most_tests": most_sets,
        "most_s": None if most_minutes is None else 60 * most_minutes,
    }
    with _progress_bar() as report:
        verification = verify_entry(entry, run.path, weights, report=report, **options)
    print_proof(verification)
    click.echo(f"\nPolicy: {run.path / POLICY_FILE}\nApply it: precscope.apply_policy(model, FILE)")
    if not verification.proven:
        context.exit(_NOT_PROVEN)


@contextmanager
def _progress_bar() -> Iterator[Callable[[int, int], None]]:
    """Show how many sets were replayed and how many are left at most; yield what is to be called before each."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"), TimeElapsedColumn())
    with Progress(*columns) as progress, _gone_on_failure(progress):
        task = progress.add_task("Replaying", total=None, left="in float32")

        def report(done: int, left: int) -> None:
            progress.update(task, completed=done, total=done + left, left=f"set {done + 1}, at most {left} left")

        yield report
        done = progress.tasks[0].completed + 1
        progress.update(task, completed=done, total=done, left="pricing done")


@contextmanager
def _gone_on_failure(progress: Progress) -> Iterator[None]:
    """Take the bar away where there is an error to read."""
    try:
        yield
    except BaseException:
        progress.live.transient = True
        raise
