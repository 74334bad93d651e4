"""What all exports share: a folder of files that are written whole, and never over others unasked."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from precscope.errors import PrecScopeError
from precscope.reports.export.csv_files import csv_files
from precscope.reports.export.parquet_files import parquet_files
from precscope.reports.export.tensorboard_events import event_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from precscope.reader import Run

    #: Returns what to write by file name: a function that writes it to the path that it is given.
    Exporter = Callable[[Run], dict[str, Callable[[Path], None]]]

__all__ = ["EXPORTERS", "export_run"]

#: By the name that `--to` takes.
EXPORTERS: dict[str, Exporter] = {"tensorboard": event_files, "csv": csv_files, "parquet": parquet_files}


def export_run(run: Run, to: str, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write `run` as `EXPORTERS[to]` does, into `folder`, and return the files.

    Raises:
        PrecScopeError: A file exists and `overwrite` is false, a package is missing, or the folder cannot be written.
    """
    files = EXPORTERS[to](run)
    if folder.exists() and not folder.is_dir():
        raise PrecScopeError(f"Expected a folder to export to, received the file '{folder}'. Name a folder.")
    paths = [folder / name for name in files]
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise PrecScopeError(
            f"'{existing[0]}'{more} exists. Choose another folder, or replace what is there with --force."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, write in zip(paths, files.values(), strict=True):
            _write(path, write)
    except OSError as error:
        raise PrecScopeError(f"The run cannot be exported to '{folder}': {error.strerror or error}.") from error
    return paths


def _write(path: Path, write: Callable[[Path], None]) -> None:
    unfinished = path.with_name(f".{path.name}.part")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
