"""`precscope run`: an unchanged script, with each training in it profiled."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run"]

# Not `rundir.local_path`: that loads NumPy, and the script may want to set OMP_NUM_THREADS first.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


# What follows the script is the script's own, whatever it looks like.
@click.command("run", context_settings={"allow_interspersed_args": False}, options_metavar="[OPTIONS]")
@click.option("-m", "as_module", is_flag=True, help="SCRIPT is the name of a module, as for python -m.")
@click.option(
    "--dir",
    "base",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where the runs go: DIR/MODEL-1, DIR/MODEL-2, ...",
)
@click.option(
    "--options", "file", metavar="FILE", type=click.Path(path_type=Path), help="YAML file of session options."
)
@click.option(
    "--policy",
    metavar="NAME",
    type=click.Choice(("float32", "mixed_float16", "mixed_bfloat16")),
    help="The dtype policy to begin with: float32, mixed_float16 or mixed_bfloat16. By default Keras' own.",
)
@click.option("--set", "settings", metavar="NAME=VALUE", multiple=True, help="One session option; wins over FILE.")
@click.argument("script")
@click.argument("arguments", metavar="[ARGUMENTS]...", nargs=-1, type=click.UNPROCESSED)
def run(
    as_module: bool,
    base: Path,
    file: Path | None,
    policy: str | None,
    settings: tuple[str, ...],
    script: str,
    arguments: tuple[str, ...],
) -> Callable[[], None]:
    """Run SCRIPT as Python would, and profile the trainings in it.

    Each model that is trained by fit or train_on_batch gets a run directory, and the end says how to see the reports.
    Options of ours come before SCRIPT; whatever follows it is the script's. Its exit code is ours.

    precscope run train.py --epochs 3

    precscope run --dir runs/lr --set every=10 -m my_package.train --epochs 3

    precscope run --policy mixed_float16 train.py

    See docs/run_scripts.md.
    """
    from precscope.options import resolve_options
    from precscope.probes.run_script import find_program, run_program

    options = resolve_options(file, **_given(settings))
    program = find_program(script, arguments, as_module)
    return functools.partial(run_program, program, _absolute(base), options, policy)


def _absolute(base: Path) -> Path:
    """Return a path that stays the same when the script changes its working directory."""
    if _URL.match(str(base)):
        raise click.UsageError(f"--dir '{base}' is a URL; expected a local path.")
    return base.expanduser().absolute()


def _given(settings: tuple[str, ...]) -> dict[str, Any]:
    """Return the options that NAME=VALUE words give, the values read as in the YAML file."""
    import yaml

    given = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip().isidentifier():
            raise click.UsageError(f"--set expects NAME=VALUE, such as every=10, got {setting!r}.")
        try:
            given[name.strip()] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise click.UsageError(f"--set {setting}: the value is no YAML, such as 10, true or [Dense].") from None
    return given
