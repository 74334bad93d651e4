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
    alike: dict[tuple[int, Any, Any], list[int]] = {}
    for index, (before, _, gradient) in enumerate(steps):
        alike.setdefault((before.shape.num_elements(), before.dtype, gradient.dtype), []).append(index)
    by_size: dict[int, list[list[int]]] = {}
    for (elements, *_), chosen in alike.items():
        by_size.setdefault(bucket_size(elements), []).append(chosen)
    parts = []
    for size, groups in sorted(by_size.items()):
        before, after, gradient = (
            tf.concat([_padded([steps[index] for index in chosen], position, size) for chosen in groups], 0)
            for position in range(3)
        )
        parts.append(_count(before, after, gradient))
    order = [index for _, groups in sorted(by_size.items()) for chosen in groups for index in chosen]
    return tf.gather(tf.concat(parts, 0), np.argsort(order))


def _padded(steps: Sequence[tuple[Any, Any, Any]], position: int, size: int) -> Any:
    """Return one tensor of each step, flat, with zeros up to `size`: float32 [steps, size].

    Every weight's dtype casts to float32 without rounding. The steps have weights of one size and dtypes: what is done
    to all of them at once is one operation for a thousand layers. Each has as many elements as its weight: a gradient's
    own shape may not be known in the trace (DepthwiseConv2D).
    """
    elements = steps[0][0].shape.num_elements()
    flat = tf.stack([tf.reshape(step[position], [elements]) for step in steps])
    return tf.pad(tf.cast(flat, tf.float32), [[0, 0], [0, size - elements]])


def _count(before: Any, after: Any, gradient: Any) -> Any:
    # Bits, not values: a comparison may take a subnormal gradient for zero.
    magnitude = tf.bitwise.bitwise_and(tf.bitcast(gradient, tf.int32), 2**31 - 1)
    updates = magnitude > 0
    lost = updates & tf.equal(tf.bitcast(before, tf.int32), tf.bitcast(after, tf.int32))
    spoiled = tf.math.is_finite(before) & ~tf.math.is_finite(after)
    flags = (updates, lost, spoiled)
    return tf.stack([tf.cast(tf.reduce_sum(tf.cast(flag, tf.int32), 1), tf.int64) for flag in flags], 1)
