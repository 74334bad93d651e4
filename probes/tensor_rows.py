"""How a recorded tensor becomes its row of statistics: which part is computed where it is made, and which at the end.

In a step that XLA compiles, the first stage is taken where the tensor is, and all tensors are finished together at the
step's end. Elsewhere the statistic is a function of its own that XLA compiles: small tensors of known size share a call
of it, for each call costs more to trace and to optimize than its work, the more of them a step has.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from precscope.formats import FORMATS
from precscope.probes.internals.xla import tie
from precscope.probes.packed_tensors import MOST_PACKED, PACKED_LIMIT
from precscope.probes.statistic import (
    Partials,
    bucket_size,
    finish,
    merge_rows_by_owner,
    pad_to_bucket,
    partial_statistics,
    partial_statistics_of_many,
    partial_statistics_of_padded,
    usual_size,
)
from precscope.statistics import HISTOGRAM_LIMIT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.records import TensorKind

__all__ = ["TensorRows", "finished_rows", "format_name"]

# Activations and gradients up to this many elements are kept until the step's end, and described together.
_SMALL = 2**14
# Elements, padding among them, and tensors that one call of the statistic describes outside XLA.
_TOGETHER, _MOST_TOGETHER = 2**16, 64


@dataclass(frozen=True)
class _Waiting:
    """A tensor that is described at the end of the step, together with others of its format."""

    tensor: Any
    dtype: str
    in_xla: bool
    usual_size: int

    @property
    def group(self) -> tuple[str, int, bool]:
        """What tensors have in common that share a call outside XLA: format, padded size, whether the size is known."""
        return self.dtype, bucket_size(self.usual_size), self.tensor.shape.is_fully_defined()


class TensorRows:
    """Describes the tensors of one step.

    Args:
        in_xla: Whether the step is compiled by XLA as a whole; otherwise each statistic is compiled on its own.
    """

    def __init__(self, in_xla: bool) -> None:
        self._in_xla = in_xla
        self._partial_functions: dict[tuple[str, int | None], Any] = {}
        self._packed = 0

    def begin(self) -> None:
        """Begin with another step."""
        self._packed = 0

    def part(self, x: Any, dtype: str, batch: int | None, kind: TensorKind) -> tuple[Any, Any]:
        """Return what `finished_rows` makes a row of, and what to go on with in place of `x`.

        Args:
            x: A float tensor in the step's own graph.
            dtype: Name of the format that its values count as.
            batch: Usual size of a dimension that is unknown; None where that is not known either.
            kind: Weights and their gradients are there until the step's end anyway.
        """
        size = usual_size(x.shape, batch)
        if self._may_wait(x, size, kind):
            self._packed += size
            return _Waiting(x, dtype, self._in_xla, size), x  # all of a format are described together
        if not self._in_xla:
            return _row(x, dtype), x
        if (dtype, batch) not in self._partial_functions:
            # One function for all tensors of a format, traced once for each shape: what it holds would be some hundred
            # operations a tensor, and building those took most of a minute for a ResNet-50.
            self._partial_functions[dtype, batch] = tf.function(
                functools.partial(_tied_partials, dtype=dtype, batch=batch), autograph=False
            )
        x, count, padding, subset, looked_at, *rows = self._partial_functions[dtype, batch](x)
        return Partials(count, tuple(rows), padding, subset, looked_at), x

    def _may_wait(self, x: Any, size: int, kind: TensorKind) -> bool:
        """Tell whether a tensor can be described at the step's end without taking much memory until then."""
        if not x.shape.is_fully_defined() and (self._in_xla or x.shape.rank is None):
            return False
        limit = PACKED_LIMIT if self._in_xla and kind in ("weight", "weight_gradient") else _SMALL
        return 0 < size <= min(limit, MOST_PACKED - self._packed)

    def row_in_loop(self, x: Any, dtype: str, batch: int | None) -> Any:
        """Return the finished row [ROW_WIDTH] of a tensor in the graph of a loop, which a part could not leave."""
        if not self._in_xla:
            return _row(x, dtype)
        return finish([partial_statistics(x, FORMATS[dtype], batch=batch)])[0]


def finished_rows(parts: list[Any]) -> dict[int, Any]:
    """Return the finished row [ROW_WIDTH] of every part, by the part's id.

    Args:
        parts: What `TensorRows.part` returned; variables that hold a row, which are read.
    """
    groups: dict[str, list[_Waiting]] = {}
    outside: dict[tuple[str, int, bool], list[_Waiting]] = {}
    for part in parts:
        if isinstance(part, _Waiting) and part.in_xla:
            groups.setdefault(part.dtype, []).append(part)
        elif isinstance(part, _Waiting):
            outside.setdefault(part.group, []).append(part)
    owners: list[Any] = [part for part in parts if isinstance(part, Partials)]
    partials = list(owners)
    for dtype, group in groups.items():
        for chosen, statistics in partial_statistics_of_many([part.tensor for part in group], FORMATS[dtype]):
            owners += [group[index] for index in chosen]
            partials.append(statistics)
    rows = dict(zip(map(id, owners), tf.unstack(finish(partials)) if partials else (), strict=True))
    for (dtype, bucket, size_is_known), alike in outside.items():
        rows_of = _rows_of_known_size if size_is_known else _rows_of_unknown_size
        together = min(_TOGETHER // bucket, _MOST_TOGETHER)
        for start in range(0, len(alike), together):
            waiting = alike[start : start + together]
            finished = tf.unstack(rows_of([part.tensor for part in waiting], dtype, bucket, together))
            rows |= {id(part): row for part, row in zip(waiting, finished, strict=False)}
    others = [part for part in parts if id(part) not in rows]
    return rows | {id(part): part.read_value() if isinstance(part, tf.Variable) else part for part in others}


def _rows_of_known_size(tensors: Sequence[Any], dtype: str, bucket: int, together: int) -> Any:
    """Return the finished rows of tensors that are padded to the same size: [together, ROW_WIDTH].

    Always as many, with tensors of nothing but padding at the end, so that one version is compiled for a size.
    """
    missing = together - len(tensors)
    counts = tf.constant([x.shape.num_elements() for x in tensors] + [0] * missing, tf.int64)
    values = tf.stack([pad_to_bucket(x) for x in tensors])
    values = tf.pad(values, [[0, missing], [0, 0]], constant_values=np.nan)
    return _rows_function(dtype)(values, counts)


def _rows_of_unknown_size(tensors: Sequence[Any], dtype: str, bucket: int, together: int) -> Any:
    """Return the same for tensors whose batch is not known while tracing: one that is larger takes several lines.

    As a rule there is one line for each, so that one version is compiled; another is where the batch is larger.
    """
    flat = [pad_to_bucket(x) for x in tensors]
    sizes = tf.stack([tf.size(x, tf.int64) for x in flat])
    lines = tf.maximum(-(-sizes // bucket), 1)
    padded = zip(flat, tf.unstack(lines * bucket - sizes), strict=True)
    values = tf.concat([tf.pad(x, [[0, padding]], constant_values=np.nan) for x, padding in padded], 0)
    owners = tf.repeat(tf.range(len(tensors)), lines)
    places = tf.range(tf.size(owners, tf.int64)) - tf.gather(tf.cumsum(lines, exclusive=True), owners)
    counts = tf.minimum(tf.gather(sizes, owners) - places * bucket, bucket)
    missing = together - len(tensors)
    return _merged_rows_function(dtype, together)(
        tf.pad(tf.reshape(values, [-1, bucket]), [[0, missing], [0, 0]], constant_values=np.nan),
        tf.pad(counts, [[0, missing]]),
        tf.pad(owners, [[0, missing]], constant_values=together - 1),
    )


def format_name(dtype: Any) -> str:
    """Return the name of the format that the values of a TensorFlow dtype count as."""
    return dtype.name if dtype.name in FORMATS else "float32"  # float64 is recorded as float32


def _row(x: Any, dtype: str) -> Any:
    values = pad_to_bucket(x)
    if values.shape[0] is not None and values.shape[0] <= HISTOGRAM_LIMIT:
        return _row_function(dtype)(values, tf.size(x, tf.int64))
    return _row_function(dtype)(values, None)


@functools.cache
def _row_function(dtype: str) -> Any:
    """Return the compiled function for all tensors of a format, with one version for each shape.

    One for the whole process: another session, or a model that is compiled anew, finds it compiled.
    """
    float_format = FORMATS[dtype]
    return tf.function(
        lambda values, count: finish([partial_statistics(values, float_format, count)])[0],
        jit_compile=True,
        autograph=False,
    )


@functools.cache
def _rows_function(dtype: str) -> Any:
    """Return the compiled function for several small tensors of a format, with one version for each padded size."""
    float_format = FORMATS[dtype]
    return tf.function(
        lambda values, counts: finish([partial_statistics_of_padded(values, float_format, counts)]),
        jit_compile=True,
        autograph=False,
    )


@functools.cache
def _merged_rows_function(dtype: str, together: int) -> Any:
    """Return the same for lines of `together` tensors, of which each may have several: `owners` says whose each is."""
    float_format = FORMATS[dtype]
    return tf.function(
        lambda values, counts, owners: merge_rows_by_owner(
            finish([partial_statistics_of_padded(values, float_format, counts)]), owners, together
        ),
        jit_compile=True,
        autograph=False,
    )


def _tied_partials(x: Any, dtype: str, batch: int | None) -> list[Any]:
    """Return `x` to go on with, and its partial statistics: count, padding, subset, looked at, rows. Inside XLA."""
    if x.shape.is_fully_defined() and x.shape.num_elements() <= HISTOGRAM_LIMIT:  # few sizes, few kernels
        partials = partial_statistics(pad_to_bucket(x), FORMATS[dtype], tf.size(x, tf.int64))
    else:
        partials = partial_statistics(x, FORMATS[dtype], batch=batch)
    # The tie: the statistic is taken at once, in a kernel of its own, and nothing that it needs lives longer. All rows
    # come from one reduction, so that one of them will do.
    rows = list(partials.rows)
    x, subset, rows[0] = tie([x, partials.subset, rows[0]])
    return [x, partials.count, partials.padding, subset, partials.looked_at, *rows]
