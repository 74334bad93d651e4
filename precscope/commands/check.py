"""`precscope check`: whether a run holds its limits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from precscope.gate import CheckResult

__all__ = ["check"]


@click.command("check")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--limits", "file", metavar="FILE", type=click.Path(path_type=Path), help="YAML file of limits.")
@click.option(
    "--max-severity",
    type=click.Choice(["none", "info", "warning"]),
    help="Worst finding that is let through.  [default: warning]",
)
@click.option(
    "--max-flushed-share", type=float, metavar="SHARE", help="Of any layer's values, measured by a reference step."
)
@click.option("--max-subnormal-share", type=float, metavar="SHARE", help="Of any output or gradient in 16 bits.")
@click.option("--max-skipped-steps", type=int, metavar="N", help="Steps that the optimizer skipped.")
@click.option("--max-skipped-share", type=float, metavar="SHARE", help="The same as a share of all steps.")
@click.option("--min-loss-scale", type=float, metavar="S", help="Lowest loss scale that may be seen.")
@click.option("--min-headroom-bits", type=float, metavar="BITS", help="What the outputs in 16 bits must leave.")
@click.option(
    "--policy", type=click.Path(path_type=Path), metavar="FILE", help="Policy file that the layers must agree with."
)
@click.option(
    "--any-ending", is_flag=True, default=None, help="Judge a training that failed, was killed or goes on, too."
)
@click.option(
    "--format", "output", type=click.Choice(["text", "json", "junit", "github"]), default="text", show_default=True
)
def check(run_dir: Path, file: Path | None, output: str, **limits: Any) -> int:
    """Say whether the run in RUN_DIR holds its limits, for scripts and nightly jobs.

    Limits come from options and from a YAML file, where their names have underscores (max_skipped_share: 0.01); options
    win. Exit codes: 0 all held, 1 one was broken, 2 none was broken but one could not be judged, or the run or the
    limits cannot be read. SHARE is a part of one. See docs/check.md.
    """
    from precscope.errors import PrecScopeError
    from precscope.gate import check_run, could_not_check
    from precscope.limits import resolve_limits
    from precscope.reader import open_run

    try:
        wanted = resolve_limits(file, **limits)
        result = check_run(open_run(run_dir), wanted)
    except PrecScopeError as error:
        if output == "text":
            raise
        # The reader of the file has to learn of it too.
        result = could_not_check(str(run_dir), str(error))
    _show(result, output)
    return result.exit_code


def _show(result: CheckResult, output: str) -> None:
    if output == "json":
        from precscope.gate import check_json

        click.echo(check_json(result))
    elif output == "text":
        from precscope.reports.terminal_check import print_check

        print_check(result)
    else:
        from precscope.reports.check_formats import as_github, as_junit

        click.echo(as_junit(result) if output == "junit" else as_github(result))
