"""Many tensors of any sizes in rows of one matrix, so that a few kernels describe all of them.

Kernels for each tensor, or each size, are what a probed step's compile time goes into: XLA compiles and tunes them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from precscope.statistics import BLOCK, histogram_stride

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["MOST_PACKED", "PACKED_LIMIT", "ROW", "PackedTensors", "in_order"]

#: Elements in a row of the matrix; a multiple of the histogram's blocks.
ROW = 2048
#: Larger tensors are better described where they are: packing copies.
PACKED_LIMIT = 2**22
#: Elements that a step may pack, half a GiB in float32: a model whose weights fill the GPU has no room for copies.
MOST_PACKED = 2**27
# Rows of a tensor that are reduced together; padded to one of these numbers, so that few kernels are compiled. The
# first two are those of the statistic.
_ROWS_OF_A_TENSOR = tuple(64 * 16**power for power in range(6))


@dataclass(frozen=True)
class PackedTensors:
    """Where each of some tensors lies in the matrix.

    Args:
        sizes: Their numbers of elements.
    """

    sizes: tuple[int, ...]

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """How many rows each tensor fills: int64 [tensors]."""
        return np.array([-(-size // ROW) for size in self.sizes], np.int64)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Each tensor's first row: int64 [tensors]."""
        return np.cumsum(self.rows) - self.rows

    @property
    def padding(self) -> NDArray[np.int64]:
        """How many NaN stand behind each tensor's elements: int64 [tensors]."""
        return self.rows * ROW - np.array(self.sizes, np.int64)

    def pack(self, tensors: Sequence[Any]) -> Any:
        """Return the matrix [rows, ROW] of tensors of one dtype, each in rows of its own that are padded with NaN.

        A tensor's own shape may not be known in the trace, as long as it has the elements that `sizes` says.
        """
        flat = [
            tf.pad(tf.reshape(x, [size]), [[0, padding]], constant_values=np.nan)
            for x, size, padding in zip(tensors, self.sizes, self.padding.tolist(), strict=True)
        ]
        return tf.reshape(tf.concat(flat, 0), [-1, ROW])

    def by_rows(self, values: Any, nothing: Sequence[Any]) -> Iterator[tuple[list[int], Any]]:
        """Yield the positions of tensors of similar size, and what was made of their rows: [tensors, rows, columns].

        Args:
            values: Of each row of the matrix: [rows, columns].
            nothing: What stands where a tensor has fewer rows than others: [columns].
        """
        padded = tf.concat([values, tf.constant([nothing], values.dtype)], 0)
        nowhere = int(self.rows.sum())
        for number, chosen in _grouped(self.rows.tolist(), _ROWS_OF_A_TENSOR):
            lines = [np.arange(self.starts[index], self.starts[index] + self.rows[index]) for index in chosen]
            yield chosen, tf.gather(padded, _filled(lines, number, nowhere))

    def subsets(self, matrix: Any, chosen: Sequence[int], length: int) -> Any:
        """Return what the histograms of some tensors look at, padded with NaN: [tensors, length].

        Args:
            matrix: What `pack` returned.
            chosen: The tensors' positions.
            length: Elements; a multiple of the histogram's blocks.
        """
        blocks = tf.pad(tf.reshape(matrix, [-1, BLOCK]), [[0, 1], [0, 0]], constant_values=np.nan)
        nowhere = int(self.rows.sum()) * ROW // BLOCK
        lines = [self._blocks_looked_at(index) + self.starts[index] * ROW // BLOCK for index in chosen]
        return tf.reshape(tf.gather(blocks, _filled(lines, length // BLOCK, nowhere)), [len(chosen), length])

    def looked_at(self, index: int) -> int:
        """Return how many elements of a tensor its histogram looks at."""
        return int(np.minimum(self.sizes[index] - self._blocks_looked_at(index) * BLOCK, BLOCK).sum())

    def _blocks_looked_at(self, index: int) -> NDArray[np.int64]:
        size = self.sizes[index]
        return np.arange(0, -(-size // BLOCK), histogram_stride(size), dtype=np.int64)


def in_order(parts: Sequence[Any], positions: Sequence[int]) -> Any:
    """Return the rows of all parts in one tensor, the first of them at the first of `positions`, and so on."""
    rows = parts[0] if len(parts) == 1 else tf.concat(parts, 0)
    order = np.argsort(positions)
    return rows if np.array_equal(order, np.arange(len(order))) else tf.gather(rows, order)


def _grouped(numbers: Sequence[int], limits: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Yield each limit, and the positions of the numbers for which it is the smallest that suffices, if any."""
    smallest = [next(limit for limit in limits if limit >= number) for number in numbers]
    for limit in sorted(set(smallest)):
        yield limit, [index for index, other in enumerate(smallest) if other == limit]


def _filled(lines: Sequence[NDArray[np.int64]], length: int, filler: int) -> NDArray[np.int32]:
    table = np.full([len(lines), length], filler, np.int32)
    for row, line in zip(table, lines, strict=True):
        row[: len(line)] = line
    return table
