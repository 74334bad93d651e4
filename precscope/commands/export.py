"""`precscope export`: a run for TensorBoard, or as tables."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["export"]

# As in precscope.reports.export, which needs NumPy: help is to come at once.
_FORMATS = ("tensorboard", "csv", "parquet")


@click.command("export")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--to", type=click.Choice(_FORMATS), required=True, help="What to write.")
@click.option("--force", is_flag=True, help="Replace files in OUT that exist.")
def export(run_dir: Path, out: Path, to: str, force: bool) -> None:
    """Write the run in RUN_DIR into the folder OUT, for other tools.

    tensorboard: an event file; show it with `tensorboard --logdir OUT`. csv: a file a table. parquet: the same, typed.
    See docs/export.md.
    """
    from precscope.reader import open_run
    from precscope.reports.export import export_run

    files = export_run(open_run(run_dir), to, out, overwrite=force)
    size = sum(path.stat().st_size for path in files)
    count = "1 file" if len(files) == 1 else f"{len(files)} files"
    click.echo(f"Wrote {count} to {out} ({size / 1e6:.1f} MB)")
