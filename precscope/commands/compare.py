"""`precscope compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.reader import Run

__all__ = ["compare"]


@click.command("compare")
@click.argument("run_dirs", metavar="RUN RUN ...", type=click.Path(path_type=Path), nargs=-1)
@click.option("--all", "show_all", is_flag=True, help="Show every layer.")
@click.option("--format", "output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def compare(run_dirs: tuple[Path, ...], show_all: bool, output: Literal["table", "json"]) -> None:
    """Set two or more runs side by side: time, memory, loss and results, and what precision changed.

    Ratios are to the run in float32 where there is exactly one, else to the first. Runs of different work are shown
    without ratios. See docs/compare.md.
    """
    from precscope.compare import compare as compare_runs
    from precscope.compare import comparison_json

    runs, unreadable = _open(run_dirs)
    comparison = compare_runs(runs, unreadable)
    if output == "json":
        click.echo(comparison_json(comparison))
        return
    from precscope.reports.terminal_compare import print_comparison

    print_comparison(comparison, show_all=show_all)


def _open(run_dirs: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Return the runs that can be read, and why others cannot."""
    from precscope.errors import RunDirectoryError
    from precscope.reader import open_run

    runs, unreadable = [], []
    for path in run_dirs:
        try:
            runs.append(open_run(path))
        except RunDirectoryError as error:
            unreadable.append(str(error))
    return runs, unreadable
