"""The one door to SQLite: a worker's file, its schema, and records as rows.

The schema is documented for readers of the file in docs/run_directory.md; the two change together.
"""

from __future__ import annotations

import json
import math
import sqlite3
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from precscope.device_records import DeviceInfo, DeviceSample
from precscope.lint_result import LintFinding
from precscope.op_records import OpRecord, ProfiledWindow
from precscope.origin_records import Frame, OriginRecord
from precscope.records import (
    SCALAR_DTYPE,
    CostRecord,
    LayerRecord,
    LossScaleRecord,
    NoticeRecord,
    ProgressRecord,
    StepTimeRecord,
    TensorRecord,
)
from precscope.reference_records import ReferenceRecord, ReferenceStepRecord
from precscope.replica_records import ReplicaRecord
from precscope.run_failures import damaged, newer_format, os_failure, sqlite_failure
from precscope.sqlite_files import connect_to_read, connect_to_write, logs_of, use_journal
from precscope.statistics import BIN_EXPONENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

__all__ = [
    "FIRST_ROW",
    "SCHEMA_VERSION",
    "close_database",
    "columns_of",
    "create_database",
    "insert",
    "insert_row",
    "last_row",
    "open_database",
    "read_meta",
    "select",
    "select_after",
    "select_results",
    "to_row",
    "transaction",
    "used_bytes",
    "write_meta",
]

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE layers (
    id TEXT PRIMARY KEY, "order" INTEGER NOT NULL, type TEXT NOT NULL, keras_path TEXT, policy TEXT NOT NULL,
    compute_dtype TEXT NOT NULL, variable_dtype TEXT NOT NULL, parameters INTEGER NOT NULL,
    inputs TEXT NOT NULL, unseen TEXT, gradient_unseen TEXT, autocast INTEGER NOT NULL
);
CREATE TABLE tensors (
    "index" INTEGER PRIMARY KEY, layer TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, dtype TEXT NOT NULL,
    shape TEXT, calls INTEGER, note TEXT
);
CREATE TABLE samples (
    "index" INTEGER PRIMARY KEY, step INTEGER NOT NULL, time_unix_s REAL NOT NULL, loss REAL,
    loss_is_nan INTEGER NOT NULL, loss_scale REAL, applied INTEGER, iterations INTEGER, step_time_ns INTEGER NOT NULL,
    allocator_current_bytes INTEGER, allocator_peak_bytes INTEGER, incident INTEGER NOT NULL DEFAULT 0,
    tensor_indices BLOB, scalars BLOB NOT NULL, histograms BLOB NOT NULL, histogram_totals BLOB
);
CREATE TABLE loss_scales (
    step INTEGER NOT NULL, loss_scale REAL, steps_applied INTEGER, steps_skipped INTEGER, steps_since_change INTEGER
);
CREATE TABLE notices (step INTEGER, level TEXT NOT NULL, source TEXT NOT NULL, message TEXT NOT NULL);
CREATE TABLE progress (step INTEGER NOT NULL, time_unix_s REAL NOT NULL);
CREATE TABLE costs (kind TEXT PRIMARY KEY, count INTEGER NOT NULL, time_ns INTEGER NOT NULL);
CREATE TABLE step_times (
    first_step INTEGER NOT NULL, steps INTEGER NOT NULL, mean_time_ns INTEGER NOT NULL, batch INTEGER
);
CREATE TABLE results (name TEXT NOT NULL, epoch INTEGER NOT NULL, value REAL, PRIMARY KEY (name, epoch));
CREATE TABLE profiled_windows (first_step INTEGER NOT NULL, steps INTEGER NOT NULL);
CREATE TABLE op_times (
    op TEXT NOT NULL, op_type TEXT, kernel TEXT, layer TEXT, direction TEXT, dtype TEXT,
    device_time_ns INTEGER NOT NULL, count INTEGER NOT NULL, tensor_core INTEGER, device TEXT NOT NULL,
    "cast" INTEGER NOT NULL, shared_with TEXT NOT NULL
);
CREATE TABLE origins (
    "index" INTEGER PRIMARY KEY, step INTEGER NOT NULL, cause TEXT NOT NULL, direction TEXT, layer TEXT,
    arrives_at TEXT, place TEXT, epoch INTEGER, batch INTEGER, loss_scale REAL, applied INTEGER, data_finite INTEGER,
    bad_weights TEXT NOT NULL, bad_updates TEXT NOT NULL, noticed_by TEXT NOT NULL, noticed_step INTEGER NOT NULL,
    finite_step INTEGER, dense_steps INTEGER NOT NULL, times INTEGER NOT NULL, last_step INTEGER NOT NULL, kept TEXT,
    note TEXT, frames TEXT NOT NULL
);
CREATE TABLE lint (
    "check" TEXT NOT NULL, severity TEXT NOT NULL, layer TEXT, sentence TEXT NOT NULL, advice TEXT NOT NULL, place TEXT
);
CREATE TABLE replicas (number INTEGER PRIMARY KEY, worker INTEGER NOT NULL, device TEXT NOT NULL);
CREATE TABLE replica_samples (
    sample INTEGER NOT NULL, replica INTEGER NOT NULL, loss REAL, loss_is_nan INTEGER NOT NULL, scalars BLOB NOT NULL,
    PRIMARY KEY (sample, replica)
);
CREATE TABLE devices (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, name TEXT, memory_total_bytes INTEGER, uuid TEXT, pci_bus_id TEXT,
    compute_capability TEXT, driver_version TEXT, cuda_driver_version TEXT
);
CREATE TABLE device_samples (
    device TEXT NOT NULL, time_unix_s REAL NOT NULL, memory_used_bytes INTEGER, memory_total_bytes INTEGER,
    process_memory_bytes INTEGER, utilization_percent INTEGER, memory_utilization_percent INTEGER, power_mw INTEGER,
    temperature_c INTEGER, sm_clock_mhz INTEGER, memory_clock_mhz INTEGER, throttle_reasons TEXT
);
CREATE TABLE reference_steps (
    step INTEGER NOT NULL, moment TEXT NOT NULL, examples INTEGER, batch INTEGER, loss_scale REAL NOT NULL,
    loss_reference REAL, loss_policy REAL, random TEXT NOT NULL, compiled INTEGER NOT NULL, time_ns INTEGER NOT NULL,
    left_out TEXT NOT NULL
);
CREATE TABLE reference (
    step INTEGER NOT NULL, moment TEXT NOT NULL, layer TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
    count INTEGER NOT NULL, reference_nonzero INTEGER NOT NULL, reference_norm REAL, flushed INTEGER NOT NULL,
    overflowed INTEGER NOT NULL, nans INTEGER NOT NULL, relative_error REAL, sqnr_db REAL, cosine REAL,
    inherited_relative_error REAL, own_reference_nonzero INTEGER, own_flushed INTEGER, own_overflowed INTEGER,
    own_nans INTEGER, own_relative_error REAL, own_sqnr_db REAL, own_cosine REAL,
    rounded_input_relative_error REAL
);
"""

#: What the file says about itself, so that its arrays can be read without PrecScope.
_META = {
    "schema_version": str(SCHEMA_VERSION),
    "scalar_fields": json.dumps(SCALAR_DTYPE.descr),
    "histogram_exponents": json.dumps(BIN_EXPONENTS),
}
_TABLES: dict[type[Any], str] = {
    LayerRecord: "layers",
    TensorRecord: "tensors",
    LossScaleRecord: "loss_scales",
    NoticeRecord: "notices",
    ProgressRecord: "progress",
    CostRecord: "costs",
    StepTimeRecord: "step_times",
    ProfiledWindow: "profiled_windows",
    OpRecord: "op_times",
    OriginRecord: "origins",
    LintFinding: "lint",
    ReplicaRecord: "replicas",
    DeviceInfo: "devices",
    DeviceSample: "device_samples",
    ReferenceStepRecord: "reference_steps",
    ReferenceRecord: "reference",
}
#: Tables that a run need not have: runs that were recorded before there were any.
_OPTIONAL_TABLES = (
    *("step_times", "results", "profiled_windows", "op_times", "devices", "device_samples", "origins"),
    *("reference_steps", "reference", "progress", "replicas", "replica_samples", "lint"),
)
#: Columns that hold a tuple as a JSON array.
_JSON_COLUMNS = ("inputs", "shape", "shared_with", "throttle_reasons", "bad_weights", "bad_updates", "left_out")
#: Columns that hold a bool, which SQLite keeps as 0 or 1.
_FLAG_COLUMNS = ("tensor_core", "cast", "autocast", "applied", "data_finite", "compiled")
#: Columns that keep NaN, as the text "nan": SQLite turns the number into NULL, which says that nothing is known.
_NAN_COLUMNS = ("loss_reference", "loss_policy")

#: Where `select_after` begins: before all rows, tensor 0 included.
FIRST_ROW = -1

Record = TypeVar("Record")


def create_database(path: Path) -> sqlite3.Connection:
    """Create the worker's file `path` and return the connection that writes it; usable from any one thread at a time.

    Raises:
        RunDirectoryError: It cannot be created.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with closing(connect_to_write(part)) as connection, transaction(connection):
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.executemany("INSERT INTO meta VALUES (?, ?)", _META.items())
        part.replace(path)  # a reader sees no file, or one with all tables
        connection = connect_to_write(path)
        use_journal(connection, path)
    except sqlite3.Error as error:
        raise sqlite_failure(error, path) from error
    except OSError as error:
        raise os_failure(error, path) from error
    return connection


def close_database(connection: sqlite3.Connection, in_place: bool) -> None:
    """Close the connection and fold the log into the file, so that one file is left, unless a reader is at work.

    Args:
        connection: What `create_database` returned.
        in_place: Whether the path still leads to the connection's file: else the log beside it is another run's.
    """
    with closing(connection), suppress(sqlite3.Error):  # on failure the log stays, and readers take both
        if in_place:
            connection.execute("PRAGMA journal_mode = DELETE")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what happens inside, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # after some errors SQLite has rolled back by itself
            connection.execute("ROLLBACK")
        raise


def insert(connection: sqlite3.Connection, records: Iterable[Any]) -> None:
    """Insert records of one class into their table; a record with the key of an older one replaces it."""
    for record in records:
        insert_row(connection, _TABLES[type(record)], to_row(record))


def insert_row(connection: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    """Insert one row, given by column."""
    columns = ", ".join(f'"{name}"' for name in row)
    marks = ", ".join("?" * len(row))
    connection.execute(f"INSERT OR REPLACE INTO {table} ({columns}) VALUES ({marks})", tuple(row.values()))


def to_row(record: Any) -> dict[str, Any]:
    """Return the fields of a record as SQLite takes them."""
    return {item.name: _to_sql(item.name, getattr(record, item.name)) for item in fields(record)}


def _to_sql(name: str, value: Any) -> Any:
    if isinstance(value, tuple):
        return json.dumps(value)
    if name in _NAN_COLUMNS and value is not None and math.isnan(value):
        return "nan"
    return value.item() if isinstance(value, np.generic) else value


@contextmanager
def open_database(path: Path) -> Iterator[sqlite3.Connection]:
    """Give a connection that reads one snapshot of the worker's file `path`, also while it is written.

    Raises:
        RunDirectoryError: The file is damaged, of a newer format or unreadable; also for errors raised inside.
    """
    with ExitStack() as stack:
        try:
            connection = connect_to_read(path, stack)
            connection.execute("BEGIN")
            _check(connection, path)
            yield connection
        except sqlite3.Error as error:
            raise sqlite_failure(error, path) from error
        except OSError as error:
            raise os_failure(error, path) from error
        except json.JSONDecodeError as error:
            raise damaged(path, f"cannot be read ({error})") from error


def _check(connection: sqlite3.Connection, path: Path) -> None:
    # SQLite finds missing pages itself, but takes a last page that was cut off as if it ended in zeros.
    if path.stat().st_size % connection.execute("PRAGMA page_size").fetchone()[0] and not logs_of(path):
        raise damaged(path, "is cut off")
    meta = read_meta(connection)
    version = str(meta.get("schema_version"))
    if not version.isdecimal():
        raise damaged(path, "holds no schema_version")
    if int(version) > SCHEMA_VERSION:
        raise newer_format(path, int(version), SCHEMA_VERSION)
    if meta.get("scalar_fields") != _META["scalar_fields"]:
        raise damaged(path, f"has other scalar_fields than version {version} of the format")


def select(connection: sqlite3.Connection, cls: type[Record]) -> tuple[Record, ...]:
    """Return all records of `cls`, in the order in which they were written."""
    return select_after(connection, cls, FIRST_ROW)[0]


def select_after(
    connection: sqlite3.Connection, cls: type[Record], row: int, most: int = -1
) -> tuple[tuple[Record, ...], int]:
    """Return the records of `cls` that were written after row number `row`, and the number of the last of them.

    Args:
        connection: What `open_database` gave.
        cls: A record that has a table.
        row: What this function returned last; `FIRST_ROW` to begin.
        most: How many records to return, the oldest first; negative for all.
    """
    if not _has(connection, _TABLES[cls]):
        return (), row
    known = columns_of(connection, _TABLES[cls])
    items = fields(cls)  # type: ignore[arg-type]  # every record is a dataclass
    # A column with a default may be newer than the run.
    names = [item.name for item in items if item.name in known or item.default is MISSING]
    columns = ", ".join(f'"{name}"' for name in names)
    query = f"SELECT rowid, {columns} FROM {_TABLES[cls]} WHERE rowid > ? ORDER BY rowid LIMIT ?"
    rows = connection.execute(query, (row, most)).fetchall()
    records = tuple(
        cls(**{name: _from_sql(name, value) for name, value in zip(names, values, strict=True)}) for _, *values in rows
    )
    return records, rows[-1][0] if rows else row


def last_row(connection: sqlite3.Connection, cls: type[Any]) -> int:
    """Return the highest row number of the table of `cls`; `FIRST_ROW` where it is empty or missing."""
    if not _has(connection, _TABLES[cls]):
        return FIRST_ROW
    (row,) = connection.execute(f"SELECT max(rowid) FROM {_TABLES[cls]}").fetchone()
    return FIRST_ROW if row is None else int(row)


def select_results(connection: sqlite3.Connection) -> dict[str, list[float]]:
    """Return what each metric was at the end of each epoch; NULL is NaN."""
    results: dict[str, list[float]] = {}
    if _has(connection, "results"):
        for name, value in connection.execute("SELECT name, value FROM results ORDER BY rowid"):
            results.setdefault(name, []).append(math.nan if value is None else value)
    return results


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return what the file's content takes, free pages not counted: those are used again."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def write_meta(connection: sqlite3.Connection, facts: Mapping[str, str | None]) -> None:
    """Store facts about the file; one that is None is deleted."""
    for name, value in facts.items():
        if value is None:
            connection.execute("DELETE FROM meta WHERE name = ?", (name,))
        else:
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def read_meta(connection: sqlite3.Connection) -> dict[str, str]:
    """Return the facts about the file, by name."""
    return dict(connection.execute("SELECT name, value FROM meta"))


def columns_of(connection: sqlite3.Connection, table: str) -> set[str]:
    """Return the names of a table's columns; none where there is no such table."""
    return {row[0] for row in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))}


def _has(connection: sqlite3.Connection, table: str) -> bool:
    """Tell whether an optional table is there; of the others a reader is to hear that they are missing."""
    return table not in _OPTIONAL_TABLES or bool(columns_of(connection, table))


def _from_sql(name: str, value: Any) -> Any:
    if name in _FLAG_COLUMNS and value is not None:
        return bool(value)
    if name in _NAN_COLUMNS and value is not None:
        return float(value)
    if name == "frames":
        return tuple(Frame(*row) for row in json.loads(value))
    return tuple(json.loads(value)) if name in _JSON_COLUMNS and value is not None else value
