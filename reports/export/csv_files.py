"""A run as CSV: one tidy file a table."""

from __future__ import annotations

import csv
from functools import partial
from typing import TYPE_CHECKING, Any

from precscope.csv_text import csv_text
from precscope.tables import TABLES, run_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from precscope.reader import Run
    from precscope.tables import Column

__all__ = ["csv_files"]


def csv_files(run: Run) -> dict[str, Callable[[Path], None]]:
    """Return what writes each file, by name."""
    return {f"{name}.csv": partial(_write, run, name) for name in TABLES}


def _write(run: Run, name: str, path: Path) -> None:
    table = run_table(run, name)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([column.name for column in table.columns])
        writer.writerows(zip(*map(_cells, table.columns), strict=True))


def _cells(column: Column) -> Iterable[Any]:
    values = column.values if isinstance(column.values, (list, tuple)) else column.values.tolist()  # type: ignore[union-attr]
    if column.absent is not None:
        values = [None if absent else value for value, absent in zip(values, column.absent.tolist(), strict=True)]
    return map(csv_text, values)
