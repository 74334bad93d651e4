"""Small models that turn non-finite at a known place, for the tests of the origin; also a user's file for replay."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

layers = keras.layers


class Op(keras.layers.Layer):
    """Applies a function of TensorFlow in the layer's compute dtype."""

    def __init__(self, function: Any, **options: Any) -> None:
        super().__init__(**options)
        self.function = function

    def call(self, x: Any) -> Any:
        return self.function(x)


class Root(keras.layers.Layer):
    """A square root, whose gradient at 0 is infinite."""

    def call(self, x: Any) -> Any:
        y = tf.nn.relu(x)
        return tf.sqrt(y)


def model_with(layer: Any, policy: str, optimizer: Any = None, loss: Any = "mse") -> keras.Model:
    """Input, `hidden` of 8, the layer, a float32 `head` of 1."""
    keras.utils.set_random_seed(2)
    stack = [keras.Input((4,)), layers.Dense(8, name="hidden", dtype=policy), layer]
    model = keras.Sequential([*stack, layers.Dense(1, name="head", dtype="float32")])
    model.compile(optimizer or keras.optimizers.SGD(1e-3), loss, jit_compile=False)
    return model


def scaled(rate: float = 1e-3, initial_scale: float = 64.0) -> Any:
    return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(rate), initial_scale=initial_scale)


def rows(batches: int, bad: dict[int, float] | None = None, factor: dict[int, float] | None = None) -> Any:
    """Batches of 8 rows; those in `bad` hold that value, those in `factor` are multiplied by it."""
    x = np.random.default_rng(1).standard_normal((batches, 8, 4)).astype(np.float32)
    for batch, value in (bad or {}).items():
        x[batch, 0, 0] = value
    for batch, value in (factor or {}).items():
        x[batch] *= value
    x = x.reshape(-1, 4)
    return x, x[:, :1].clip(-3, 3)


def build_reciprocal() -> keras.Model:
    """A division by what a batch of zeros makes zero, in bfloat16, where no loss scale skips anything."""
    keras.utils.set_random_seed(2)
    policy = "mixed_bfloat16"
    divide = Op(lambda x: 1.0 / tf.reduce_sum(tf.abs(x), 1, keepdims=True), name="reciprocal", dtype=policy)
    hidden = layers.Dense(8, name="hidden", use_bias=False, dtype=policy)
    model = keras.Sequential([keras.Input((4,)), hidden, divide, layers.Dense(1, name="head", dtype="float32")])
    model.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=False)
    return model


def build_other() -> keras.Model:
    """Another model, which no kept weights of these fit."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    model.compile("sgd", "mse")
    return model


def build_nothing() -> int:
    return 3
