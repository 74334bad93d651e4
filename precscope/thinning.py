"""Keeping a worker's file bounded: old samples are thinned out evenly, incidents last.

An incident is a sample that held infinities or NaN, or whose update was skipped. It is what somebody will look for
after a long training, so the others go first; the first and the last sample stay in any case, and so do the newest,
which a live view may be about to read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import sqlite3

    from numpy.typing import NDArray

__all__ = ["thin_rows", "thin_samples"]

_NEWEST = 64
#: Rows of one table among the many small ones, after which every second goes.
_UNCHANGED = """
DELETE FROM loss_scales WHERE rowid IN (
    SELECT rowid FROM (
        SELECT rowid, row_number() OVER (ORDER BY rowid) AS number,
            loss_scale IS lag(loss_scale) OVER looks AND loss_scale IS lead(loss_scale) OVER looks
            AND steps_skipped IS lag(steps_skipped) OVER looks AND steps_skipped IS lead(steps_skipped) OVER looks
            AS unchanged
        FROM loss_scales WINDOW looks AS (ORDER BY rowid)
    ) WHERE number % 2 = 0 AND unchanged
)
"""
_EVERY_SECOND = """
DELETE FROM {table} WHERE rowid IN (
    SELECT rowid FROM (SELECT rowid, row_number() OVER (ORDER BY rowid) AS number FROM {table}) WHERE number % 2 = 0
)
"""


def thin_samples(connection: sqlite3.Connection, incidents: bool) -> int:
    """Delete about half of the samples, those left spread evenly over the steps; return how many went.

    Args:
        connection: The writer's connection, in a transaction.
        incidents: Whether to thin the incidents, or the others.
    """
    rows = connection.execute('SELECT "index", step, incident FROM samples ORDER BY "index"').fetchall()
    newest = min(_NEWEST, len(rows) // 4)
    old = np.array(rows[1 : len(rows) - max(newest, 1)], np.int64).reshape(-1, 3)
    candidates = old[(old[:, 2] != 0) == incidents]
    kept = _evenly_spread(candidates[:, 1], len(candidates) // 2)
    doomed = np.delete(candidates[:, 0], kept)
    for table, column in (("samples", '"index"'), ("replica_samples", "sample")):
        numbers = [(int(index),) for index in doomed]
        connection.executemany(f"DELETE FROM {table} WHERE {column} = ?", numbers)
    return len(doomed)


def _evenly_spread(steps: NDArray[np.int64], most: int) -> NDArray[np.intp]:
    """Return positions of at most `most` of the ascending `steps`: the ones nearest to places at equal distances."""
    if not most:
        return np.zeros(0, np.intp)
    places = np.linspace(steps[0], steps[-1], most)
    after = np.clip(np.searchsorted(steps, places), 1, len(steps) - 1)
    nearer_before = places - steps[after - 1] < steps[after] - places
    return np.unique(after - nearer_before)


def thin_rows(connection: sqlite3.Connection, table: str) -> int:
    """Delete every second row of a table of small records; return how many are left.

    Looks at the loss scale between which nothing changed go first.
    """
    before = _count(connection, table)
    if table == "loss_scales":
        connection.execute(_UNCHANGED)
    if _count(connection, table) > 0.75 * before:
        connection.execute(_EVERY_SECOND.format(table=table))
    return _count(connection, table)


def _count(connection: sqlite3.Connection, table: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
