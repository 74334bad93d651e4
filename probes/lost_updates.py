"""Updates that were lost: the weight had a gradient, and the step left it as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from precscope.probes.packed_tensors import MOST_PACKED, PACKED_LIMIT, PackedTensors, in_order

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["count_lost_updates"]


def count_lost_updates(steps: Sequence[tuple[Any, Any, Any]]) -> Any:
    """Count, for each (weight before, weight after, gradient), what the update did: int64 [len(steps), 3].

    Updates, lost updates, and elements that were finite before and are not any more.

    An update is an element with a non-zero gradient (NaN and infinities among them); it is lost where the weight is
    equal before and after. Tensors are packed together, since each count is a kernel on a GPU, but for large ones and
    for what would be too many.
    """
    elements = [before.shape.num_elements() for before, _, _ in steps]
    small = np.array(elements) <= PACKED_LIMIT
    # Three matrices of float32: before, after, gradient.
    small &= np.cumsum(np.where(small, elements, 0)) <= MOST_PACKED // 3
    together = np.flatnonzero(small).tolist()
    groups = [*([together] if together else []), *([index] for index in np.flatnonzero(~small).tolist())]
    counts = [_count([steps[index] for index in group], [elements[index] for index in group]) for group in groups]
    return in_order(counts, [index for group in groups for index in group])


def _count(steps: Sequence[tuple[Any, Any, Any]], elements: Sequence[int]) -> Any:
    packed = PackedTensors(tuple(elements))
    # float32, to which every weight's dtype casts without rounding. Bits, not values: a comparison may take a subnormal
    # gradient for zero.
    before, after, gradient = (
        packed.pack([tf.cast(step[position], tf.float32) for step in steps]) for position in range(3)
    )
    magnitude = tf.bitwise.bitwise_and(tf.bitcast(gradient, tf.int32), 2**31 - 1)
    updates = magnitude > 0
    lost = updates & tf.equal(tf.bitcast(before, tf.int32), tf.bitcast(after, tf.int32))
    spoiled = tf.math.is_finite(before) & ~tf.math.is_finite(after)
    rows = tf.stack([tf.reduce_sum(tf.cast(flag, tf.int32), 1) for flag in (updates, lost, spoiled)], 1)
    order: list[int] = []
    parts = []
    for chosen, of_rows in packed.by_rows(rows, [0, 0, 0]):
        order += chosen
        parts.append(tf.cast(tf.reduce_sum(of_rows, 1), tf.int64))
    # The padding, NaN in all three, counts as an update that was lost.
    padding = packed.padding[:, None] * np.array([1, 1, 0])
    return in_order(parts, order) - padding
