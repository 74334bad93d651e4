"""Small Keras models and data for the probes' tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

if TYPE_CHECKING:
    from collections.abc import Callable


def data(samples: int = 64, features: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((samples, features)).astype(np.float32)
    return x, (x.sum(1) > 0).astype(np.int32)


def mlp(policy: str = "float32", features: int = 6, **compile_arguments: Any) -> keras.Model:
    """Return a compiled two-layer classifier under `policy`, always with the same weights."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((features,)),
            keras.layers.Dense(8, activation="relu", name="hidden", dtype=policy),
            keras.layers.Dropout(0.2, name="drop", dtype=policy),
            keras.layers.Dense(2, activation="softmax", name="head", dtype=policy),
        ]
    )
    optimizer: Any = keras.optimizers.Adam(0.01)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    arguments: dict[str, Any] = {
        "optimizer": optimizer,
        "loss": "sparse_categorical_crossentropy",
        "jit_compile": False,
    }
    model.compile(**(arguments | compile_arguments))
    return model


def tape_step(model: Any, optimizer: Any, loss_of: Any) -> Callable[[Any, Any], Any]:
    """Return a train step of a loop of one's own, not a tf.function yet: it updates once and returns the loss."""

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
            scaled = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return step
