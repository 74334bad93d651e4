"""`precscope report`: what a run shows, in the terminal."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["report"]


@click.command("report")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--all", "show_all", is_flag=True, help="Show every layer and every finding.")
@click.option("--layer", "pattern", metavar="PATTERN", help="Show only layers whose name matches, with their weights.")
def report(run_dir: Path, show_all: bool, pattern: str | None) -> None:
    """Print what the run in RUN_DIR shows.

    First the verdict and what to do, then the layers, worst first. Works while the training still runs, and after it
    was interrupted or killed. PATTERN is a regular expression that may match any part of a name.
    """
    from precscope.reader import open_run
    from precscope.reports.terminal import print_report

    print_report(open_run(run_dir), show_all=show_all, pattern=pattern)
