"""`precscope replay`: run a kept train step again, and see where it turned non-finite."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["replay"]


@click.command("replay")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--step", type=click.IntRange(min=0), help="The kept train step.  [default: the first one kept]")
@click.option("--model", "entry", metavar="MODULE:FUNCTION", required=True, help="Builds the model as it was trained.")
@click.option("--policy", help="Set this dtype policy for all of Keras before FUNCTION is called.")
@click.option(
    "--frames", "most", type=click.IntRange(min=1), default=12, show_default=True, help="Show so many frames."
)
@click.option("--all", "show_all", is_flag=True, help="Show every frame, also those behind the first bad one.")
def replay(run_dir: Path, step: int | None, entry: str, policy: str | None, most: int, show_all: bool) -> None:
    """Run a kept train step of RUN_DIR again, without its update, and print its frames, newest last.

    A frame is one layer's pass, forward or backward: the range of what went in and of what came out. FUNCTION takes no
    arguments and returns the compiled model, as for lint; for a step of a custom training loop the model, its optimizer
    and the step function. Steps are kept with tripwire=True, together with the weights before them. See docs/replay.md.
    """
    from precscope.errors import PrecScopeError
    from precscope.probes.tensorflow_startup import load_tensorflow

    load_tensorflow()
    import keras

    from precscope.probes.replay_kept import replay_kept
    from precscope.reports.terminal_replay import print_replay

    if policy is not None:
        try:
            keras.config.set_dtype_policy(policy)
        except ValueError as error:
            raise PrecScopeError(f"Keras knows no dtype policy {policy!r}: {error}") from None
    print_replay(replay_kept(run_dir, step, entry), None if show_all else most)
