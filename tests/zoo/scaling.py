"""Where the loss scale is the matter, or the format of the variables: float32 layers are not the answer."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.zoo.case import Case, Data
from tests.zoo.parts import Compute, compiled, linear_target, noisy, random, standard_rows

__all__ = ["CASES"]

layers = keras.layers


def tiny_loss(optimizer: Any) -> Any:
    """A loss of little weight: its gradients are tiny, and nothing is wrong with the network."""
    inputs = keras.Input((16,), name="input")
    x = layers.Dense(32, "tanh", name="hidden")(inputs)
    x = layers.Dense(16, "tanh", name="hidden_2")(x)
    outputs = layers.Dense(1, dtype="float32", name="head")(x)
    return compiled(keras.Model(inputs, outputs), optimizer=optimizer(), loss_weights=1e-7, auto_scale_loss=False)


def adam() -> Any:
    return keras.optimizers.Adam(0.01, epsilon=1e-14)


def scaled_from(scale: float) -> Any:
    return keras.optimizers.LossScaleOptimizer(adam(), initial_scale=scale)


class OneHotEmbedding(keras.layers.Layer):
    """An embedding by matrix multiplication, as for TPUs: the gradients of equal ids are summed in float16."""

    def build(self, input_shape: Any) -> None:
        self.table = self.add_weight(
            shape=(100, 8), initializer=keras.initializers.RandomNormal(stddev=0.01, seed=3), name="table"
        )

    def call(self, ids: Any) -> Any:
        return tf.one_hot(ids, 100, dtype=self.compute_dtype) @ self.table


def embedded_bag(scale: float | None) -> Any:
    ids = keras.Input((64,), dtype="int32", name="ids")
    x = OneHotEmbedding(name="embedding")(ids)
    x = Compute(lambda x: tf.reduce_sum(x, 1), "bag")(x)
    outputs = layers.Dense(1, dtype="float32", name="head")(layers.Dense(16, "tanh", name="hidden")(x))
    optimizer = keras.optimizers.Adam(0.01, loss_scale_factor=scale)
    return compiled(keras.Model(ids, outputs), optimizer=optimizer, auto_scale_loss=False)


def mostly_padding() -> Data:
    """Bags of ids, most of them id 0, which stands for padding."""
    ids = random(0).integers(1, 100, (512, 64))
    length = random(1).integers(4, 12, (512, 1))
    ids[np.arange(64) >= length] = 0
    counts = np.stack([np.bincount(row, minlength=100) for row in ids])
    target = counts[:, 1:] @ random(2).standard_normal((99, 1))
    return Data(ids.astype(np.int32), 1 + noisy(target, 3))


def slow_learner() -> Any:
    inputs = keras.Input((16,), name="input")
    outputs = layers.Dense(1, dtype=None, name="head")(layers.Dense(16, "tanh", name="hidden")(inputs))
    return compiled(keras.Model(inputs, outputs), optimizer=keras.optimizers.SGD(3e-3))


def offset_rows() -> Data:
    x = random(0).standard_normal((512, 16)).astype(np.float32)
    return Data(x, 3 + noisy(linear_target(x, 1), 2))


CASES = (
    Case(
        "no_loss_scale",
        "Gradients too small for float16 become zero, since nobody scales the loss: the answer is a scale.",
        partial(tiny_loss, adam),
        standard_rows,
        action="wrap_optimizer",
        repair={"make": partial(tiny_loss, partial(scaled_from, 2.0**15))},
    ),
    Case(
        "low_loss_scale",
        "The same with a loss scale that begins at 1 and grows once in 2,000 steps: the answer is a higher one.",
        partial(tiny_loss, partial(scaled_from, 1.0)),
        standard_rows,
        action="raise_loss_scale",
        repair={"make": partial(tiny_loss, partial(scaled_from, 2.0**15))},
    ),
    Case(
        "embedding_high_scale",
        "The gradients of one id, given by half of all tokens, are summed beyond 65,504 under a fixed scale of 2^15.",
        partial(embedded_bag, 2.0**15),
        mostly_padding,
        action="lower_loss_scale",
        also_right=frozenset({"keep_float32"}),
        suspects=frozenset({"embedding"}),
        repair={"make": partial(embedded_bag, 2.0**6)},
        goes_nonfinite=True,
        source_layer="embedding",
        direction="backward",
        first_bad_step=0,
    ),
    Case(
        "lost_updates_bfloat16",
        "In pure bfloat16 most updates are smaller than half a unit in the last place of the weight, and are lost.",
        slow_learner,
        offset_rows,
        action="float32_variables",
        policy="bfloat16",
        repair={"policy": "mixed_bfloat16"},
    ),
)
