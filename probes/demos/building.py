"""What the demos' modules share: building in a policy, and batches from arrays."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["batches", "compile_in", "global_policy"]


@contextmanager
def global_policy(policy: str) -> Iterator[None]:
    """Build a model in `policy` as users do, and leave Keras' global policy as it was."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)


def compile_in(policy: str, model: keras.Model, **options: Any) -> keras.Model:
    """Compile `model` with Adam, in a dynamic LossScaleOptimizer where `policy` is mixed_float16, and return it."""
    optimizer = keras.optimizers.Adam()
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, **options)
    return model


def batches(x: NDArray[Any], y: NDArray[Any], batch_size: int) -> tf.data.Dataset:
    """Return full batches of `x` and `y`, prepared ahead of the training."""
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size, drop_remainder=True)
    return dataset.prefetch(tf.data.AUTOTUNE)
