"""`precscope policy`: the layers to keep out of 16 bits, as a file that Keras models can be given, or as code."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

__all__ = ["policy"]


@click.command("policy")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--format", "output", type=click.Choice(["yaml", "python"]), default="yaml", show_default=True)
@click.option("-o", "--output", "file", metavar="FILE", type=click.Path(path_type=Path), help="Write it to FILE.")
@click.option("--force", is_flag=True, help="Replace FILE where it exists.")
def policy(run_dir: Path, output: Literal["yaml", "python"], file: Path | None, force: bool) -> None:
    """Print the precision policy that the run in RUN_DIR asks for.

    The default policy, the layers to keep in float32 with reasons and evidence, and what the optimizer needs: what
    precscope verify proved where it has run, otherwise what the report advises, unproven. Apply the file with
    precscope.apply_policy(model, FILE), or build under it with precscope.policy_scope(FILE). See docs/policy.md.
    """
    from precscope.advice.proposal import policy_of_run
    from precscope.policy_code import policy_code
    from precscope.policy_file import policy_yaml, write_text
    from precscope.reader import open_run

    found = policy_of_run(open_run(run_dir))
    text = policy_yaml(found) if output == "yaml" else policy_code(found)
    if file is None:
        if force:
            raise click.UsageError("--force belongs to a file. Name it: -o policy.yaml")
        click.echo(text, nl=False)
        return
    write_text(text, file, overwrite=force)
    click.echo(f"Wrote {file}: {found.default}, {len(found.pins)} pinned, {_state(found.proven)}.")


def _state(proven: bool | None) -> str:
    return {True: "proven", False: "not proven", None: "not proven yet (precscope verify)"}[proven]
