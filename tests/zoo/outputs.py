"""Outputs and losses that are computed in float16."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.zoo.case import Case, Data
from tests.zoo.parts import Compute, compiled, noisy, random, regressor

__all__ = ["CASES"]

layers = keras.layers


def classifier(from_logits: bool) -> Any:
    inputs = keras.Input((16,), name="input")
    x = layers.Dense(32, "relu", name="hidden")(inputs)
    sure = keras.initializers.RandomNormal(stddev=4.0, seed=3)
    head = layers.Dense(10, None if from_logits else "softmax", kernel_initializer=sure, name="head")(x)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    return compiled(keras.Model(inputs, head), loss, keras.optimizers.Adam(0.01))


def ten_classes() -> Data:
    """A tenth of the labels is wrong, as in most data."""
    x = (1.5 * random(0).standard_normal((2048, 16))).astype(np.float32)
    y = (x @ random(1).standard_normal((16, 10))).argmax(1)
    wrong = random(2).uniform(size=len(y)) < 0.1
    y[wrong] = random(3).integers(0, 10, wrong.sum())
    return Data(x, y)


def cross_entropy_layer(from_logits: bool) -> Any:
    """The loss is a layer of the model, as where it needs more than labels and predictions."""
    inputs, labels = keras.Input((16,), name="input"), keras.Input((1,), name="labels")
    hidden = layers.Dense(32, "relu", name="hidden")(inputs)
    sure = keras.initializers.RandomNormal(stddev=1.0, seed=3)
    x = layers.Dense(1, kernel_initializer=sure, name="logit")(hidden)
    if not from_logits:
        x = layers.Activation("sigmoid", name="probability")(x)
        # Given the sigmoid's very output, Keras' loss finds the logits by itself.
        x = layers.Reshape((1,), name="column")(x)

    def cross_entropy(labels: Any, x: Any) -> Any:
        return keras.losses.binary_crossentropy(labels, x, from_logits=from_logits)

    outputs = Compute(cross_entropy, "cross_entropy")(labels, x)
    return compiled(keras.Model({"input": inputs, "labels": labels}, outputs), lambda _, loss: tf.reduce_mean(loss))


def two_classes() -> Data:
    x = (1.5 * random(0).standard_normal((512, 16))).astype(np.float32)
    chance = 1 / (1 + np.exp(-x @ random(1).standard_normal((16, 1))))
    y = (random(2).uniform(size=chance.shape) < chance).astype(np.float32)
    return Data({"input": x, "labels": y}, np.zeros_like(y))


def similarity() -> Any:
    left, right = keras.Input((32,), name="left"), keras.Input((32,), name="right")
    project = layers.Dense(32, use_bias=False, name="project")
    angle = Compute(lambda a, b: keras.losses.cosine_similarity(a, b)[:, None], "similarity")(
        project(left), project(right)
    )
    return regressor([left, right], angle, 0.01)


def pairs_of_300() -> Data:
    left, right = random(0).standard_normal((2, 512, 32))
    right = random(1).uniform(-1, 1, (512, 1)) * left + right
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosine = (left * right).sum(1) / lengths
    scaled = {"left": (left * 300).astype(np.float32), "right": (right * 300).astype(np.float32)}
    return Data(scaled, noisy(cosine[:, None], 2))


CASES = (
    Case(
        "softmax_head",
        "A float16 softmax head at scale 2^15: the gradient scale / (batch * p) overflows where p is small, step after "
        "step, and what rounds to p = 0 has no gradient at all.",
        partial(classifier, False),
        ten_classes,
        truth=frozenset({"head"}),
        also_right=frozenset({"from_logits"}),
        repair={"make": partial(classifier, True)},
        batch=256,
        goes_nonfinite=True,
        source_layer="head",
        direction="backward",
        first_bad_step=0,
    ),
    Case(
        "cross_entropy_at_1",
        "The functional binary cross-entropy clips probabilities to 1 - 1e-7, which is 1 in float16: log(1 - 1) is "
        "-Inf. And a sigmoid that rounds to 1 has no gradient.",
        partial(cross_entropy_layer, False),
        two_classes,
        truth=frozenset({"probability", "column", "cross_entropy"}),
        also_right=frozenset({"from_logits"}),
        repair={"make": partial(cross_entropy_layer, True)},
        goes_nonfinite=True,
        source_layer="cross_entropy",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "cosine_similarity",
        "The cosine similarity of float16 vectors whose squares sum to more than 65,504 is 0. Silent.",
        similarity,
        pairs_of_300,
        truth=frozenset({"similarity"}),
    ),
)
