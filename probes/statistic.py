"""The tensor statistic in TensorFlow: `precscope.statistics.describe`, cheap enough to sit in a train step.

Three things decide its cost under XLA on a GPU, where it was measured (docs/statistic.md): kernels launched for each
tensor, instructions for each element, and distinct kernels to compile. Hence two stages. `partial_statistics` reads a
tensor once, in one reduction over long rows, and keeps a few numbers a row and a bounded subset of elements for the
histogram. `finish` then turns the partials of *all* tensors into rows of one matrix, in a handful of kernels.

Everything is read off the bits of the float32 value, in integer arithmetic, because comparisons with subnormals are not
reliable where flush-to-zero is on. Casting to float32 is exact for every format that PrecScope knows.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from precscope.probes.internals.xla import reduce_together, tie
from precscope.probes.packed_tensors import PackedTensors, in_order
from precscope.records import SCALAR_DTYPE
from precscope.statistics import (
    BLOCK,
    EXPONENT_MAX,
    EXPONENT_MIN,
    HISTOGRAM_BINS,
    HISTOGRAM_LIMIT,
    histogram_stride,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from precscope.formats import FloatFormat

__all__ = [
    "EMPTY_ROW",
    "ROW_WIDTH",
    "Partials",
    "bucket_size",
    "decode_rows",
    "finish",
    "merge_rows",
    "merge_rows_by_owner",
    "pad_to_bucket",
    "partial_statistics",
    "partial_statistics_of_many",
    "partial_statistics_of_padded",
    "usual_size",
]

# Reductions by row, in the order of a finished row: five counts, three extremes, two sums.
_COUNTS = ("zeros", "subnormals", "positive_infinities", "negative_infinities", "nans")
_INT32_MAX, _INT32_MIN = 2**31 - 1, -(2**31)
_COMBINE = (tf.add,) * 5 + (tf.maximum, tf.minimum, tf.minimum) + (tf.add,) * 2
_INITIAL = (np.int32(0),) * 5 + (np.int32(_INT32_MIN),) + (np.int32(_INT32_MAX),) * 2 + (np.float32(0),) * 2
_ZEROS, _SUBNORMALS, _NAN = (_COUNTS.index(name) for name in ("zeros", "subnormals", "nans"))
_SMALLEST = len(_COUNTS) + 2

#: A finished row, int64: count, the five counts, maximum, minimum and smallest magnitude (as ordered integers, see
#: `_ordered`), the bits of the float32 sum and sum of squares, histogram count, histogram.
ROW_WIDTH = 1 + len(_COMBINE) + 1 + HISTOGRAM_BINS
_MAX_COLUMN, _MIN_COLUMN, _SMALLEST_COLUMN, _SUM_COLUMN, _SQUARES_COLUMN, _LOOKED_COLUMN = 6, 7, 8, 9, 10, 11

#: What a row holds before anything was recorded: the identity of `merge_rows`.
EMPTY_ROW: NDArray[np.int64] = np.zeros(ROW_WIDTH, np.int64)
EMPTY_ROW[_MAX_COLUMN], EMPTY_ROW[_MIN_COLUMN], EMPTY_ROW[_SMALLEST_COLUMN] = _INT32_MIN, _INT32_MAX, _INT32_MAX

# Rows in which a tensor below a size is reduced: few values, so that rows of many tensors are finished together. Not
# one row, though: XLA then computes what is to be reduced in kernels of their own, and writes all of it to memory.
_ROWS = ((2**21, 64), (sys.maxsize, 1024))
# What an unknown dimension is taken for where nothing better is known.
_USUAL_BATCH = 128
# Sizes to which the histogram's subsets are padded, so that few distinct kernels are compiled.
_SUBSET_SIZES = (2**12, HISTOGRAM_LIMIT)

_MAGNITUDE_MASK, _INFINITY_BITS, _MANTISSA_BITS, _BIAS = 0x7FFFFFFF, 0x7F800000, 23, 127
_NEGATIVE_INFINITY_BITS = _INFINITY_BITS - 2**31


@dataclass(frozen=True)
class Partials:
    """The first stage's result for one tensor, or for several of one size.

    Attributes:
        count: int64 [tensors], numbers of elements.
        rows: One tensor [tensors, rows] for each reduction, int32, the last two float32.
        padding: int64 [tensors], how many NaN were added to make rows of equal length.
        subset: [tensors, size], what the histogram looks at, padded with NaN to one of `_SUBSET_SIZES`.
        looked_at: int64 [tensors], how many elements of `subset` are real.
    """

    count: Any
    rows: tuple[Any, ...]
    padding: Any
    subset: Any
    looked_at: Any


def partial_statistics(x: Any, float_format: FloatFormat, count: Any = None, batch: int | None = None) -> Partials:
    """Return the partial statistics of `x`, a float tensor of any shape whose values count as `float_format`.

    Args:
        x: The tensor.
        float_format: Says which values are subnormal.
        count: int64 scalar, where only the first `count` elements are real and the rest is padding by `pad_to_bucket`.
        batch: Usual size of a dimension that is unknown while tracing. Where it is wrong, the result is still exact,
            but the histogram may look at fewer elements than it could.
    """
    flat = _on_its_own(_flat(x))
    size = usual_size(x.shape, batch)
    subset, looked_at = _histogram_subset(flat, size)
    if count is None:
        count = tf.size(flat, tf.int64)
    else:
        looked_at = count
    rows = _rows_for(size)
    padding = _up_to_multiple(flat, rows)
    length = (tf.shape(flat)[0] if flat.shape[0] is None else flat.shape[0]) + padding
    table = tf.reshape(_pad(flat, padding), [1, rows, length // rows])
    filled = tf.reshape(tf.size(table, tf.int64) - count, [1])
    return Partials(
        tf.reshape(count, [1]), _reduce(table, float_format), filled, subset[None], tf.reshape(looked_at, [1])
    )


def partial_statistics_of_padded(values: Any, float_format: FloatFormat, counts: Any) -> Partials:
    """Return those of `values` [tensors, size], padded by `pad_to_bucket`, with int64 `counts` [tensors] elements."""
    values, size = _on_its_own(values), values.shape[1]
    table = tf.reshape(values, [-1, _rows_for(size), size // _rows_for(size)])
    subset = _pad(values, _subset_size(size) - size)
    return Partials(counts, _reduce(table, float_format), size - counts, subset, counts)


def partial_statistics_of_many(tensors: Sequence[Any], float_format: FloatFormat) -> list[tuple[list[int], Partials]]:
    """Return the partial statistics of several tensors of known sizes and one dtype, packed into one matrix.

    Each with the positions of the tensors whose they are.
    """
    packed = PackedTensors(tuple(x.shape.num_elements() for x in tensors))
    matrix = _on_its_own(packed.pack([_flat(x) for x in tensors]))
    columns = _reduce(matrix[None], float_format)
    bits = tf.stack([tf.bitcast(column[0], tf.int32) for column in columns], 1)
    nothing = [int(np.asarray(value).view(np.int32)) for value in _INITIAL]
    found = []
    for similar, of_rows in packed.by_rows(bits, nothing):
        for length in _SUBSET_SIZES:
            places = [place for place, index in enumerate(similar) if _subset_size(packed.sizes[index]) == length]
            if places:
                chosen = [similar[place] for place in places]
                rows = of_rows if len(places) == len(similar) else tf.gather(of_rows, places)
                found.append((chosen, _packed_partials(packed, matrix, chosen, rows, length)))
    return found


def _packed_partials(packed: PackedTensors, matrix: Any, chosen: list[int], rows: Any, length: int) -> Partials:
    """Return the partial statistics of some of the packed tensors.

    Args:
        packed: Where the tensors lie.
        matrix: The packed tensors.
        chosen: Positions of those at hand.
        rows: Bits of what their rows were reduced to, int32 [tensors, rows, len(_COMBINE)].
        length: How many elements their subsets for the histogram have room for.
    """
    return Partials(
        tf.constant([packed.sizes[index] for index in chosen], tf.int64),
        tuple(
            tf.bitcast(column, tf.float32) if isinstance(initial, np.float32) else column
            for column, initial in zip(tf.unstack(rows, axis=2), _INITIAL, strict=True)
        ),
        tf.constant(packed.padding[chosen]),
        packed.subsets(matrix, chosen, length),
        tf.constant([packed.looked_at(index) for index in chosen], tf.int64),
    )


def _subset_size(size: int) -> int:
    """Return the size to which the histogram's subset of a tensor of `size` elements is padded."""
    stride = histogram_stride(size)
    return next(length for length in _SUBSET_SIZES if length * stride >= size)


def _reduce(table: Any, float_format: FloatFormat) -> tuple[Any, ...]:
    """Reduce [tensors, rows, elements] to [tensors, rows], once for each of `_COMBINE`."""
    bits = tf.bitcast(tf.cast(table, tf.float32), tf.int32)
    # One operation: ten of their own became up to ten kernels a tensor, each of which XLA compiles and tunes.
    return reduce_together(_accumulands(bits, float_format), _INITIAL, _COMBINE)


def _on_its_own(x: Any) -> Any:
    """Return `x`, which XLA must have computed before the statistic reads it.

    Fused with what computes `x`, each statistic would be a kernel of its own that XLA compiles; read from memory, all
    tensors of a size share one.
    """
    return tie([x])[0]


def _flat(x: Any) -> Any:
    flat = tf.reshape(x, [-1])
    # float64 has no statistics of its own, and float8 has hardly any operations.
    return flat if flat.dtype.size in (2, 4) else tf.cast(flat, tf.float32)


def bucket_size(size: int) -> int:
    """Return the size to which a tensor of `size` elements is padded, so that few sizes are compiled."""
    return size if size > HISTOGRAM_LIMIT else next(4**k for k in range(5, 9) if 4**k >= size)


def pad_to_bucket(x: Any) -> Any:
    """Return `x` flat and, where its size is known, padded with NaN to `bucket_size`."""
    flat = _flat(x)
    size = flat.shape[0]
    return flat if size is None else _pad(flat, bucket_size(size) - size)


def usual_size(shape: Any, batch: int | None) -> int:
    """Return the number of elements, where unknown dimensions are taken as `batch`."""
    dimensions = [] if shape.rank is None else shape.as_list()
    return int(np.prod([(batch or _USUAL_BATCH) if d is None else d for d in dimensions], dtype=np.int64))


def _rows_for(size: int) -> int:
    """Return how many rows a tensor is reduced in: enough to fill a GPU, few enough to keep them for every tensor."""
    return next(rows for limit, rows in _ROWS if size < limit)


def _up_to_multiple(flat: Any, of: int) -> Any:
    """Return how many elements are missing to a multiple of `of`: an int where the size is known."""
    size = flat.shape[0]
    return tf.math.floormod(-tf.size(flat), of) if size is None else -size % of


def _histogram_subset(flat: Any, usual_size: int) -> tuple[Any, Any]:
    """Return the elements that the histogram looks at, padded with NaN, and how many they are."""
    blocks = tf.reshape(_pad(flat, _up_to_multiple(flat, BLOCK)), [-1, BLOCK])
    usual_stride, length = histogram_stride(usual_size), _subset_size(usual_size)
    stride = usual_stride if flat.shape[0] is not None else tf.maximum(1, -(-tf.shape(blocks)[0] // (length // BLOCK)))
    taken = tf.reshape(blocks[::stride], [-1])
    # Only the tensor's last block can hold padding, and only if that block was taken.
    padding = tf.size(blocks) - tf.size(flat)
    last_taken = tf.equal(tf.math.floormod(tf.shape(blocks)[0] - 1, stride), 0)
    looked_at = tf.size(taken) - tf.where(last_taken, padding, 0)
    subset = tf.reshape(_pad(taken, length - tf.size(taken)), [length])
    return subset, tf.cast(looked_at, tf.int64)


def _pad(x: Any, padding: Any) -> Any:
    """Return `x` with `padding` NaN behind its last dimension."""
    if isinstance(padding, int) and padding == 0:
        return x
    return tf.pad(x, [[0, 0]] * (x.shape.rank - 1) + [[0, padding]], constant_values=np.nan)


def _accumulands(bits: Any, float_format: FloatFormat) -> tuple[Any, ...]:
    """Return what is reduced, in the order of `_COMBINE`, from int32 `bits` of float32 values."""
    magnitude = tf.bitwise.bitwise_and(bits, _MAGNITUDE_MASK)
    smallest_normal = int(np.float32(float_format.smallest_normal).view(np.int32))
    zero, finite = tf.equal(magnitude, 0), magnitude < _INFINITY_BITS
    ordered = _ordered(bits)
    value = tf.where(finite, tf.bitcast(bits, tf.float32), 0.0)
    # As few instructions as will do: `_finished_scalars` takes the zeros from the subnormals, and infinity from the
    # smallest magnitudes.
    flags = (
        zero,
        magnitude < smallest_normal,
        tf.equal(bits, _INFINITY_BITS),
        tf.equal(bits, _NEGATIVE_INFINITY_BITS),
        magnitude > _INFINITY_BITS,
    )
    return (
        *(tf.cast(flag, tf.int32) for flag in flags),
        tf.where(finite, ordered, _INT32_MIN),
        tf.where(finite, ordered, _INT32_MAX),
        tf.where(zero, _INT32_MAX, magnitude),
        value,
        value * value,
    )


def _ordered(bits: Any) -> Any:
    """Map the bits of float32 values to integers of the same order (two's complement instead of sign and magnitude)."""
    return tf.bitwise.bitwise_xor(bits, tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits, 31), _MAGNITUDE_MASK))


def finish(partials: Sequence[Partials]) -> Any:
    """Return the finished rows of all tensors, in order: int64 [tensors, ROW_WIDTH]."""
    scalars = _grouped(partials, lambda p: int(p.rows[0].shape[1]), _finished_scalars)
    histograms = _grouped(partials, lambda p: int(p.subset.shape[1]), _finished_histograms)
    return tf.concat([scalars, histograms], 1)


def _grouped(
    partials: Sequence[Partials], key: Callable[[Partials], int], finished: Callable[[list[Partials]], Any]
) -> Any:
    """Apply `finished` to all partials of equal `key` together, and put the rows into the order of `partials`."""
    if len(partials) == 1:
        return finished(list(partials))
    starts = np.cumsum([0, *(int(p.count.shape[0]) for p in partials)])
    order: list[int] = []
    parts = []
    for value in sorted({key(p) for p in partials}):
        chosen = [index for index, p in enumerate(partials) if key(p) == value]
        order += [row for index in chosen for row in range(starts[index], starts[index + 1])]
        parts.append(finished([partials[index] for index in chosen]))
    return in_order(parts, order)


def _finished_scalars(partials: list[Partials]) -> Any:
    rows = [tf.concat([p.rows[index] for p in partials], 0) for index in range(len(_COMBINE))]
    columns = [_as_int64(column) for column in reduce_together(rows, _INITIAL, _COMBINE)]
    columns[_SUBNORMALS] -= columns[_ZEROS]
    columns[_SMALLEST] = tf.where(columns[_SMALLEST] < _INFINITY_BITS, columns[_SMALLEST], _INT32_MAX)
    # The padding is NaN: it takes part in nothing but the count of NaN.
    columns[_NAN] -= tf.concat([p.padding for p in partials], 0)
    counts, looked_at = (tf.concat([getattr(p, name) for p in partials], 0) for name in ("count", "looked_at"))
    return tf.stack([counts, *columns, looked_at], 1)


def _finished_histograms(partials: list[Partials]) -> Any:
    subsets = tf.concat([tf.cast(p.subset, tf.float32) for p in partials], 0)
    return _histogram(tf.reshape(subsets, [-1, subsets.shape[1] // BLOCK, BLOCK]))


def _as_int64(column: Any) -> Any:
    return tf.cast(tf.bitcast(column, tf.int32), tf.int64)


def _histogram(values: Any) -> Any:
    """Count float32 [tensors, blocks, BLOCK] by exponent: int64 [tensors, HISTOGRAM_BINS].

    Eight 8-bit counters are packed into one int64: an element adds `1 << (8 * (bin % 8))` to the word of its group
    `bin // 8`. A word takes at most 255 elements, so the words of each block are added up, unpacked, and added again.
    """
    magnitude = tf.bitwise.bitwise_and(tf.bitcast(values, tf.int32), _MAGNITUDE_MASK)
    exponent = tf.bitwise.right_shift(magnitude, _MANTISSA_BITS) - _BIAS
    bins = tf.clip_by_value(exponent, EXPONENT_MIN, EXPONENT_MAX) - EXPONENT_MIN
    counted = (magnitude > 0) & (magnitude < _INFINITY_BITS)
    group = tf.where(counted, tf.bitwise.right_shift(bins, 3), -1)
    shift = tf.cast(tf.bitwise.left_shift(tf.bitwise.bitwise_and(bins, 7), 3), tf.int64)
    one = tf.bitwise.left_shift(tf.ones_like(shift), shift)
    words = [tf.reduce_sum(tf.where(tf.equal(group, k), one, 0), 2) for k in range(HISTOGRAM_BINS // 8)]
    shifts = tf.range(8, dtype=tf.int64) * 8
    counters = tf.bitwise.bitwise_and(tf.bitwise.right_shift(tf.stack(words, 1)[..., None], shifts), 255)
    return tf.reshape(tf.reduce_sum(counters, 2), [-1, HISTOGRAM_BINS])


def merge_rows(first: Any, second: Any) -> Any:
    """Return the finished rows [..., ROW_WIDTH] of both tensors together; counts and extremes stay exact."""
    largest, smallest = tf.maximum(first, second), tf.minimum(first, second)
    return _merged(first + second, largest, smallest, _floats(first) + _floats(second))


def merge_rows_by_owner(rows: Any, owners: Any, number: int) -> Any:
    """Return the finished rows [number, ROW_WIDTH] of tensors, each merged from those of `rows` that it owns."""
    total, sums = (tf.math.unsorted_segment_sum(x, owners, number) for x in (rows, _floats(rows)))
    largest = tf.math.unsorted_segment_max(rows, owners, number)
    return _merged(total, largest, tf.math.unsorted_segment_min(rows, owners, number), sums)


def _merged(total: Any, largest: Any, smallest: Any, floats: Any) -> Any:
    parts = [
        total[..., :_MAX_COLUMN],
        largest[..., _MAX_COLUMN : _MAX_COLUMN + 1],
        smallest[..., _MIN_COLUMN : _SMALLEST_COLUMN + 1],
        _as_int64(floats),
        total[..., _LOOKED_COLUMN:],
    ]
    return tf.concat(parts, -1)


def _floats(rows: Any) -> Any:
    """Return the float32 sums that finished rows hold as bits."""
    return tf.bitcast(tf.cast(rows[..., _SUM_COLUMN : _SQUARES_COLUMN + 1], tf.int32), tf.float32)


def decode_rows(rows: NDArray[np.int64]) -> tuple[NDArray[np.void], NDArray[np.uint64]]:
    """Turn finished rows [tensors, ROW_WIDTH] into scalars (SCALAR_DTYPE [tensors]) and histograms [tensors, bins]."""
    scalars = np.zeros(len(rows), SCALAR_DTYPE)
    scalars["count"] = rows[:, 0]
    for column, name in enumerate(_COUNTS, start=1):
        scalars[name] = rows[:, column]
    magnitudes = rows.astype(np.int32)  # the float columns fit: they were made from int32
    for name, column in (("max", _MAX_COLUMN), ("min", _MIN_COLUMN)):
        ordered = magnitudes[:, column]
        scalars[name] = (ordered ^ ((ordered >> 31) & _MAGNITUDE_MASK)).view(np.float32)
    scalars["smallest_nonzero"] = np.ascontiguousarray(magnitudes[:, _SMALLEST_COLUMN]).view(np.float32)
    finite = rows[:, 0] - rows[:, 3] - rows[:, 4] - rows[:, 5]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        sums = (
            np.ascontiguousarray(magnitudes[:, _SUM_COLUMN : _SQUARES_COLUMN + 1]).view(np.float32).astype(np.float64)
        )
        scalars["mean"], scalars["rms"] = sums[:, 0] / finite, np.sqrt(sums[:, 1] / finite)
    for name in ("min", "max", "mean", "rms"):
        scalars[name][finite == 0] = 0
    scalars["smallest_nonzero"][finite == rows[:, 1]] = 0
    scalars["histogram_count"] = rows[:, _LOOKED_COLUMN]
    return scalars, rows[:, _LOOKED_COLUMN + 1 :].astype(np.uint64)
