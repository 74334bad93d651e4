"""Updates that were lost: the weight had a gradient, and the step left it as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from precscope.probes.statistic import bucket_size

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["count_lost_updates"]


def count_lost_updates(steps: Sequence[tuple[Any, Any, Any]]) -> Any:
    """Count, for each (weight before, weight after, gradient), what the update did: int64 [len(steps), 3].

    Updates, lost updates, and elements that were finite before and are not any more.

    An update is an element with a non-zero gradient (NaN and infinities among them); it is lost where the weight is
    equal before and after. Tensors of one size are counted together, since each count is a kernel on a GPU.
    """
    elements = [before.shape.num_elements() for before, _, _ in steps]
    sizes = [bucket_size(number) for number in elements]
    order: list[int] = []
    parts = []
    for size in sorted(set(sizes)):
        chosen = [index for index, other in enumerate(sizes) if other == size]
        order += chosen
        before, after, gradient = (
            tf.stack([_padded(steps[index][position], elements[index], size) for index in chosen])
            for position in range(3)
        )
        parts.append(_count(before, after, gradient))
    return tf.gather(tf.concat(parts, 0), np.argsort(order))


def _padded(x: Any, elements: int, size: int) -> Any:
    """Return `x` flat in float32, to which every weight's dtype casts without rounding, with zeros up to `size`.

    It has as many elements as the weight: a gradient's own shape may not be known in the trace (DepthwiseConv2D).
    """
    flat = tf.cast(tf.reshape(x, [elements]), tf.float32)
    return tf.pad(flat, [[0, size - elements]])


def _count(before: Any, after: Any, gradient: Any) -> Any:
    # Bits, not values: a comparison may take a subnormal gradient for zero.
    magnitude = tf.bitwise.bitwise_and(tf.bitcast(gradient, tf.int32), 2**31 - 1)
    updates = magnitude > 0
    lost = updates & tf.equal(tf.bitcast(before, tf.int32), tf.bitcast(after, tf.int32))
    spoiled = tf.math.is_finite(before) & ~tf.math.is_finite(after)
    flags = (updates, lost, spoiled)
    return tf.stack([tf.cast(tf.reduce_sum(tf.cast(flag, tf.int32), 1), tf.int64) for flag in flags], 1)
