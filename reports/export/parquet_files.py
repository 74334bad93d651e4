"""A run as Parquet, by pyarrow: one file a table, typed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from precscope.errors import PrecScopeError
from precscope.tables import TABLES, run_table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from precscope.reader import Run
    from precscope.tables import Column

__all__ = ["parquet_files"]


def parquet_files(run: Run) -> dict[str, Callable[[Path], None]]:
    """Return what writes each file, by name.

    Raises:
        PrecScopeError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise PrecScopeError(
            "Parquet is written by pyarrow, which is not installed. Install it with: pip install pyarrow. "
            "Or export CSV, which needs nothing: --to csv"
        ) from None
    return {f"{name}.parquet": partial(_write, run, name) for name in TABLES}


def _write(run: Run, name: str, path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = run_table(run, name)
    columns = {column.name: _array(column) for column in table.columns}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd")


def _array(column: Column) -> Any:
    import pyarrow

    types = {"int": pyarrow.int64(), "float": pyarrow.float64(), "bool": pyarrow.bool_(), "text": pyarrow.string()}
    # from_pandas=False: a NaN is a NaN here, and what is absent is marked.
    return pyarrow.array(column.values, types[column.type], mask=column.absent, from_pandas=False)
