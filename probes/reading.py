"""What one probed step recorded, and the matrix that carries it out of the step.

Row 0 of the matrix is the header: a stamp, which tells whether the matrix was written by the step just run, and the
step's scalars. Each further row is a tensor's: the finished row of `statistic`, then what an update did to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from precscope.probes.statistic import ROW_WIDTH, decode_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from precscope.records import TensorKind
    from precscope.replica_records import ReplicaSample

__all__ = ["UPDATE_COLUMNS", "Header", "Reading", "TensorKey", "TracedTensor", "float_bits", "header_row", "reading_of"]

#: Columns behind a tensor's finished row: updates, lost updates, weights that the update left non-finite.
UPDATE_COLUMNS = 3


class Header(IntEnum):
    """Columns of the header. Floats are there as the bits of a float32; a flag tells whether there is a value."""

    STAMP = 0
    LOSS = 1
    SCALE = 2
    UPDATES_BEFORE = 3
    UPDATES_AFTER = 4
    HAS_LOSS = 5
    HAS_SCALE = 6
    HAS_UPDATE = 7


class TensorKey(NamedTuple):
    """What identifies a recorded tensor: layer id, kind, and output index or variable name."""

    layer: str
    kind: TensorKind
    name: str


@dataclass
class TracedTensor:
    """What is known of a recorded tensor when the step was traced."""

    key: TensorKey
    dtype: str
    shape: tuple[int | None, ...] | None
    calls: int | None = 0
    note: str | None = None


@dataclass(frozen=True)
class Reading:
    """What one probed step recorded; arrays are ordered like `tensors`.

    `spoiled` tells of each weight how many elements were finite before the update and not after it. Where several
    replicas trained, the numbers are over those of this process, and `replicas` has each one's.
    """

    tensors: tuple[TracedTensor, ...]
    scalars: NDArray[np.void]
    histograms: NDArray[np.uint64]
    spoiled: NDArray[np.int64]
    loss: float | None
    loss_scale: float | None
    updates_before: int | None
    updates_after: int | None
    replicas: tuple[ReplicaSample, ...] = ()


def float_bits(value: Any) -> Any:
    """Return the bits of a float, of the mean of several, as an int32 scalar tensor for the header."""
    value = tf.cast(tf.convert_to_tensor(value), tf.float32)
    return tf.bitcast(tf.reduce_mean(value) if value.shape.rank else value, tf.int32)


def header_row(values: dict[Header, Any]) -> Any:
    """Return the header as the matrix's first row, int64 [1, columns], from int64 scalars; 0 where there is none."""
    zero = tf.constant(0, tf.int64)
    header = tf.stack([values.get(column, zero) for column in Header])
    return tf.pad(header, [[0, ROW_WIDTH + UPDATE_COLUMNS - len(Header)]])[None]


def reading_of(tensors: tuple[TracedTensor, ...], matrix: NDArray[np.int64]) -> Reading:
    """Return what the matrix of a step says about its tensors."""
    header, rows = matrix[0], matrix[1:]
    scalars, histograms = decode_rows(rows[:, :ROW_WIDTH])
    scalars["updates"], scalars["lost_updates"] = rows[:, ROW_WIDTH], rows[:, ROW_WIDTH + 1]
    updated = bool(header[Header.HAS_UPDATE])
    return Reading(
        tensors=tensors,
        scalars=scalars,
        histograms=histograms,
        spoiled=rows[:, ROW_WIDTH + 2],
        loss=_float(header[Header.LOSS]) if header[Header.HAS_LOSS] else None,
        loss_scale=_float(header[Header.SCALE]) if header[Header.HAS_SCALE] else None,
        updates_before=int(header[Header.UPDATES_BEFORE]) if updated else None,
        updates_after=int(header[Header.UPDATES_AFTER]) if updated else None,
    )


def _float(bits: np.int64) -> float:
    return float(np.int32(bits).view(np.float32))
