"""The first examples of a batch, where the whole does not fit into memory."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

__all__ = ["examples_in", "first_examples"]


def examples_in(tree: Any) -> int | None:
    """Return the size of the first dimension of the first tensor that has one; None where none has."""
    for leaf in tf.nest.flatten(tree):
        shape = getattr(leaf, "shape", None)
        if shape is not None and len(shape):
            return int(shape[0])
    return None


def first_examples(tree: Any, size: int, examples: int) -> Any:
    """Return the first `examples` of every tensor whose first dimension is `size`, the batch's; the rest as it is."""

    def slice_of(leaf: Any) -> Any:
        shape = getattr(leaf, "shape", None)
        return leaf[:examples] if shape is not None and len(shape) and shape[0] == size else leaf

    return tf.nest.map_structure(slice_of, tree)
