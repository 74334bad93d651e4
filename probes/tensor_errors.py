"""The sums of `precscope.errors_between` in TensorFlow, where the tensors are."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

__all__ = ["SUMS", "error_sums"]

#: How many numbers describe a pair, in the order of the attributes of `TensorErrors`.
SUMS = 10


def error_sums(reference: Any, other: Any) -> Any:
    """Return the sums over one pair of tensors, float64 [SUMS].

    Sums are taken in float64: products of float32 values neither overflow nor vanish there.

    Args:
        reference: Any shape and float dtype.
        other: Of the same shape, any float dtype.
    """
    return _sums(*(tf.reshape(tf.cast(tensor, tf.float32), [-1]) for tensor in (reference, other)))


def _sums_of_flat(reference: Any, other: Any) -> Any:
    finite = tf.math.is_finite(reference)
    both = finite & tf.math.is_finite(other)
    # By their bits: a processor that flushes subnormals finds them equal to zero.
    nonzero = finite & _is_nonzero(reference)
    counts = [
        tf.ones_like(finite),
        nonzero,
        nonzero & ~_is_nonzero(other),
        finite & tf.math.is_inf(other),
        finite & tf.math.is_nan(other),
        both,
    ]
    r = tf.cast(tf.where(both, reference, 0), tf.float64)
    p = tf.cast(tf.where(both, other, 0), tf.float64)
    sums = [tf.reduce_sum(product) for product in (r * r, p * p, r * p, (p - r) ** 2)]
    counted = [tf.cast(tf.math.count_nonzero(count), tf.float64) for count in counts]
    return tf.stack([*counted, *sums])


#: Called, not built into each step's graph, and traced once a size: a step compares hundreds of tensors. It is not put
#: into the graph when that is optimized either.
_sums = tf.function(_sums_of_flat, autograph=False, experimental_attributes={"_noinline": True})


def _is_nonzero(x: Any) -> Any:
    return tf.bitwise.bitwise_and(tf.bitcast(x, tf.int32), 0x7FFFFFFF) != 0
