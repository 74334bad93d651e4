"""Cases written after the rules, to see what the rules are worth on what they were not made for."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.zoo.case import Case, Data
from tests.zoo.parts import Compute, compiled, linear_target, many_rows, noisy, random, regressor, standard_rows

__all__ = ["CASES"]

layers = keras.layers


def variance_by_layers() -> Any:
    """A norm of three layers: the variance overflows in one, and the next makes a zero of it."""
    inputs = keras.Input((16,), name="input")
    x = layers.Dense(32, name="project")(inputs)
    squares = Compute(lambda x: tf.reduce_mean(tf.square(x), -1, keepdims=True), "mean_square")(x)
    inverse = Compute(lambda s: tf.math.rsqrt(s + 1e-3), "inverse_root")(squares)
    x = layers.Multiply(name="normalized")([x, inverse])
    return regressor(inputs, layers.Dense(16, "tanh", name="hidden")(x))


def values_of_300() -> Data:
    data = standard_rows()
    return Data(data.x * 300, data.y)


def attention_with_dropout() -> Any:
    """Keras' own attention; with dropout it computes the scores by itself, in float16."""
    tokens = keras.Input((8, 16), name="tokens")
    x = layers.MultiHeadAttention(2, 8, dropout=0.01, seed=3, name="attention")(tokens, tokens)
    return regressor(tokens, layers.GlobalAveragePooling1D(name="pool")(x), 0.0005)


def tokens_of_150() -> Data:
    tokens = (150 * random(0).standard_normal((512, 8, 16))).astype(np.float32)
    target = tokens.mean(1) @ random(2).standard_normal((16, 1))
    return Data(tokens, noisy(target, 3))


class Tower(keras.Model):
    """A subclassed model with code between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [layers.Dense(16, "relu"), layers.Dense(16, "relu")]
        self.energy = Compute(lambda x: tf.reduce_sum(tf.square(x), -1, keepdims=True), "energy")
        self.head = layers.Dense(1, dtype="float32")

    def call(self, x: Any) -> Any:
        scale = tf.sqrt(self.energy(x * 100.0) + 1.0)
        for block in self.blocks:
            x = block(x)
        return self.head(tf.concat([tf.cast(x, tf.float32), tf.cast(scale, tf.float32) / 400.0], -1))


def subclassed() -> Any:
    return compiled(Tower())


def softplus_by_hand() -> Any:
    model = keras.Sequential(name="sequential")
    model.add(keras.Input((16,)))
    model.add(layers.Dense(16, name="before"))
    model.add(Compute(lambda x: tf.math.log(1.0 + tf.exp(x)), "softplus"))
    model.add(layers.Dense(1, dtype="float32", name="head"))
    return compiled(model)


def values_of_8() -> Data:
    data = standard_rows()
    return Data(data.x * 8, data.y)


def distance_to_centres() -> Any:
    """Distances by |a|^2 - 2ab + |b|^2: large terms that cancel, if the format holds them."""
    inputs = keras.Input((8,), name="input")
    centres = (100 + random(5).standard_normal((16, 8))).astype(np.float32)

    def distances(x: Any) -> Any:
        c = tf.cast(centres, x.dtype)
        cross = tf.matmul(x, c, transpose_b=True)
        return tf.reduce_sum(x * x, -1, keepdims=True) - 2 * cross + tf.reduce_sum(c * c, -1)

    x = Compute(distances, "distances")(inputs)
    return regressor(inputs, Compute(lambda d: tf.exp(-d / 16), "kernel")(x), 0.02)


def rows_around_100() -> Data:
    x = random(0).standard_normal((512, 8))
    return Data((100 + x).astype(np.float32), noisy(linear_target(x, 1), 2))


def two_faults() -> Any:
    inputs, ids = keras.Input((16,), name="input"), keras.Input((1,), name="ids")
    grown = Compute(lambda x: tf.reduce_mean(tf.exp(x), -1, keepdims=True), "mean_exp")(inputs)
    logged = Compute(lambda x: tf.math.log(x), "log")(grown)
    turns = Compute(lambda i: tf.concat([tf.sin(i * 0.5), tf.cos(i * 0.5)], -1), "turns")(ids)
    return regressor([inputs, ids], layers.Concatenate(name="both")([logged, turns]), 0.03)


def exponents_and_ids() -> Data:
    x = random(0).uniform(2, 14, (512, 16)).astype(np.float32)
    ids = random(1).integers(0, 9000, (512, 1))
    target = np.log(np.exp(x.astype(np.float64)).mean(1, keepdims=True)) + np.sin(ids * 0.5)
    return Data({"input": x, "ids": ids.astype(np.float32)}, noisy(target, 2))


def bfloat16_positions() -> Any:
    positions = keras.Input((1,), name="positions")
    turns = Compute(lambda p: tf.concat([tf.sin(p * 0.5), tf.cos(p * 0.5)], -1), "turns")(positions)
    return regressor(positions, turns, 0.03)


def positions_up_to_999() -> Data:
    positions = random(0).integers(0, 1000, (512, 1))
    return Data(positions.astype(np.float32), noisy(np.sin(positions * 0.5), 1))


def gru() -> Any:
    inputs = keras.Input((12, 4), name="input")
    x = layers.GRU(8, return_sequences=True, name="gru")(inputs)
    return regressor(inputs, layers.GRU(8, name="gru_2")(x))


def sequences_of_numbers() -> Data:
    x = random(0).standard_normal((512, 12, 4)).astype(np.float32)
    return Data(x, noisy(linear_target(x[:, -3:], 1), 2))


def large_but_fine() -> Any:
    """Activations of some 20,000 on purpose, divided by a Rescaling at once."""
    inputs = keras.Input((16,), name="input")
    x = layers.Dense(16, "tanh", name="first")(inputs)
    x = layers.Rescaling(2e4, name="up")(x)
    x = layers.Rescaling(5e-5, name="down")(x)
    return regressor(inputs, layers.Dense(16, "tanh", name="last")(x))


def squeeze_and_excite() -> Any:
    inputs = keras.Input((8, 8, 4), name="input")
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv")(inputs)
    gate = layers.GlobalAveragePooling2D(name="squeeze")(x)
    gate = layers.Dense(8, "sigmoid", name="gate")(layers.Dense(4, "relu", name="narrow")(gate))
    x = layers.Multiply(name="excite")([x, layers.Reshape((1, 1, 8), name="reshape")(gate)])
    x = layers.SeparableConv2D(8, 3, name="separable")(x)
    return regressor(inputs, layers.GlobalMaxPooling2D(name="pool")(x), 0.002)


def small_pictures() -> Data:
    colour = random(1).standard_normal((200 * 64, 4))
    x = random(0).standard_normal((200 * 64, 8, 8, 4)) + colour[:, None, None]
    return Data(x.astype(np.float32), noisy(colour @ np.array([[1.0], [-1.0], [0.5], [0.2]]), 2, noise=1.0))


def contrastive() -> Any:
    """A float16 softmax over similarities with a small temperature, and logits into the loss: as in CLIP."""
    left, right = keras.Input((16,), name="left"), keras.Input((16,), name="right")
    project = layers.Dense(16, name="project")
    unit = layers.UnitNormalization(name="unit")
    scores = Compute(lambda a, b: tf.matmul(a, b, transpose_b=True) * 10, "scores")(
        unit(project(left)), unit(project(right))
    )
    logits = layers.Activation("linear", dtype="float32", name="logits")(scores)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return compiled(keras.Model([left, right], logits), loss, keras.optimizers.Adam(0.003))


def matching_pairs() -> Data:
    left = random(0).standard_normal((200 * 64, 16))
    right = left + 0.7 * random(1).standard_normal(left.shape)
    pairs = {"left": left.astype(np.float32), "right": right.astype(np.float32)}
    return Data(pairs, np.tile(np.arange(64), 200))


CASES = (
    Case(
        "variance_by_layers",
        "The mean square of values of 300 overflows in one layer, and the next turns the infinity into zero. Silent.",
        variance_by_layers,
        values_of_300,
        truth=frozenset({"mean_square", "inverse_root", "normalized"}),
        goes_nonfinite=True,
        source_layer="mean_square",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "keras_attention",
        "Keras' attention with dropout multiplies queries and keys in float16, beyond 65,504.",
        attention_with_dropout,
        tokens_of_150,
        truth=frozenset({"attention"}),
        bound=0.05,  # the two steps that its loss scale takes to find its level are 3 % of a loss that falls so fast
        goes_nonfinite=True,
        source_layer="attention",  # its own code: the product of queries and keys, before its softmax
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "subclassed_energy",
        "A subclassed model sums squares beyond 65,504 in a layer; the code after it takes the root.",
        subclassed,
        standard_rows,
        truth=frozenset({"energy"}),
        goes_nonfinite=True,
        source_layer="energy",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "softplus_by_hand",
        "log(1 + exp(x)) for x above 11: infinite, although the result is small.",
        softplus_by_hand,
        values_of_8,
        truth=frozenset({"softplus"}),
        goes_nonfinite=True,
        source_layer="softplus",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "cancelling_distances",
        "Large terms of a distance cancel. In float16 they are infinite before they do (8 * 100^2 is above 65,504), "
        "and infinity less infinity is NaN.",
        distance_to_centres,
        rows_around_100,
        truth=frozenset({"distances"}),
        goes_nonfinite=True,
        source_layer="distances",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "two_faults",
        "The mean of exponentials overflows, with the logarithm that reads it; and ids beyond 2,048 lose digits.",
        two_faults,
        exponents_and_ids,
        truth=frozenset({"mean_exp", "log", "turns"}),
        goes_nonfinite=True,
        source_layer="mean_exp",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "positions_bfloat16",
        "bfloat16 holds whole numbers up to 256 only. Silent.",
        bfloat16_positions,
        positions_up_to_999,
        truth=frozenset({"turns"}),
        policy="mixed_bfloat16",
    ),
    Case("gru", "Two GRUs with a float32 head.", gru, sequences_of_numbers, action="none"),
    Case("large_but_fine", "Activations of 20,000, as they always are.", large_but_fine, many_rows, action="none"),
    Case(
        "squeeze_excite",
        "A gate on channels, separable convolutions.",
        squeeze_and_excite,
        small_pictures,
        action="none",
    ),
    Case("contrastive", "Unit vectors, temperature, float32 logits.", contrastive, matching_pairs, action="none"),
)
