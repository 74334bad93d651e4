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
    pad_to_bucket,
    partial_statistics,
    partial_statistics_of_many,
    partial_statistics_of_padded,
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
        if self._may_wait(x, kind):
            self._packed += x.shape.num_elements()
            return _Waiting(x, dtype, self._in_xla), x  # all of a format are described together
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

    def _may_wait(self, x: Any, kind: TensorKind) -> bool:
        """Tell whether a tensor can be described at the step's end without taking much memory until then."""
        if not x.shape.is_fully_defined():
            return False
        limit = PACKED_LIMIT if self._in_xla and kind in ("weight", "weight_gradient") else _SMALL
        return 0 < x.shape.num_elements() <= min(limit, MOST_PACKED - self._packed)

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
    outside: dict[tuple[str, int], list[_Waiting]] = {}
    for part in parts:
        if isinstance(part, _Waiting) and part.in_xla:
            groups.setdefault(part.dtype, []).append(part)
        elif isinstance(part, _Waiting):
            outside.setdefault((part.dtype, bucket_size(part.tensor.shape.num_elements())), []).append(part)
    owners: list[Any] = [part for part in parts if isinstance(part, Partials)]
    partials = list(owners)
    for dtype, group in groups.items():
        for chosen, statistics in partial_statistics_of_many([part.tensor for part in group], FORMATS[dtype]):
            owners += [group[index] for index in chosen]
            partials.append(statistics)
    rows = dict(zip(map(id, owners), tf.unstack(finish(partials)) if partials else (), strict=True))
    for (dtype, bucket), group in outside.items():
        rows |= _rows_of_waiting(group, dtype, bucket)
    others = [part for part in parts if id(part) not in rows]
    return rows | {id(part): part.read_value() if isinstance(part, tf.Variable) else part for part in others}


def _rows_of_waiting(group: Sequence[_Waiting], dtype: str, bucket: int) -> dict[int, Any]:
    """Return the finished row of tensors that are padded to the same size, by id: some of them in each call.

    Always as many of them, with tensors of nothing but padding at the end, so that one version is compiled for a size.
    """
    together = min(_TOGETHER // bucket, _MOST_TOGETHER)
    rows: dict[int, Any] = {}
    for start in range(0, len(group), together):
        chosen = group[start : start + together]
        missing = together - len(chosen)
        counts = tf.constant([part.tensor.shape.num_elements() for part in chosen] + [0] * missing, tf.int64)
        values = tf.stack([pad_to_bucket(part.tensor) for part in chosen])
        values = tf.pad(values, [[0, missing], [0, 0]], constant_values=np.nan)
        finished = tf.unstack(_rows_function(dtype)(values, counts))
        rows |= {id(part): row for part, row in zip(chosen, finished, strict=False)}
    return rows


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
