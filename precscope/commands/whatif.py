"""`precscope whatif`: what other formats and loss scales would do to a run, predicted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import click

from precscope.errors import OptionsError

__all__ = ["whatif"]

# As in precscope.format_shares, which needs NumPy: help is to come at once.
_FORMATS = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


@click.command("whatif")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--format-name", "names", type=click.Choice(_FORMATS), multiple=True, help="Only this format, in detail.")
@click.option(
    "--loss-scale", type=float, metavar="S", help="Predict gradients at this loss scale.  [default: the run's]"
)
@click.option("--all", "show_all", is_flag=True, help="Show every layer.")
@click.option("--format", "output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def whatif(
    run_dir: Path,
    names: tuple[str, ...],
    loss_scale: float | None,
    show_all: bool,
    output: Literal["table", "json"],
) -> None:
    """Predict what other formats and loss scales would do to the run in RUN_DIR.

    For each layer the shares of values that would become zero, keep fewer digits, or become infinite; from a float32
    run, what mixed_float16 would do. Everything is predicted from the recorded histograms, never measured. See
    docs/what_if.md.
    """
    from precscope.format_shares import what_if_json, what_if_report
    from precscope.reader import open_run

    if loss_scale is not None and not (math.isfinite(loss_scale) and loss_scale > 0):
        raise OptionsError(f"--loss-scale {loss_scale:g}: expected a positive number, such as 32768.")
    report = what_if_report(open_run(run_dir), names or _FORMATS, loss_scale)
    if output == "json":
        click.echo(what_if_json(report))
        return
    from precscope.reports.terminal_what_if import print_what_if

    print_what_if(report, show_all=show_all)
