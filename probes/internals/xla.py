"""XLA's own operations that TensorFlow has no public name for."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops.gen_xla_ops import xla_optimization_barrier, xla_variadic_reduce_v2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "reduce_together",
    "tie",
]


def tie(tensors: list[Any]) -> list[Any]:
    """Return the tensors, none of which XLA may use before all of them exist. Only inside XLA."""
    return list(xla_optimization_barrier(input=tensors))


def reduce_together(
    tensors: Sequence[Any], initial: Sequence[Any], combine: Sequence[Callable[[Any, Any], Any]]
) -> tuple[Any, ...]:
    """Reduce the last dimension of all tensors, of one shape, in one operation. Only inside XLA.

    Args:
        tensors: What to reduce; dtypes may differ.
        initial: For each tensor the scalar at which its reduction starts, of its dtype.
        combine: For each tensor the function of two scalars.
    """
    traced = _reducer(tuple(tensor.dtype for tensor in tensors), tuple(combine))
    last = int(tensors[0].shape.rank) - 1
    return tuple(xla_variadic_reduce_v2(list(tensors), list(initial), [last], traced))


@functools.cache
def _reducer(dtypes: tuple[Any, ...], combine: tuple[Callable[[Any, Any], Any], ...]) -> Any:
    """Return the function of two scalars for each dtype, traced: what XLA reduces with."""
    count = len(dtypes)

    def reducer(*scalars: Any) -> list[Any]:
        pairs = zip(combine, scalars[:count], scalars[count:], strict=True)
        return [function(first, second) for function, first, second in pairs]

    scalars = [tf.TensorSpec([], dtype) for dtype in dtypes]
    with tf.init_scope():
        return tf.function(reducer, autograph=False).get_concrete_function(*scalars, *scalars)
