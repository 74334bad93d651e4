"""Cases written after the rules had been mended for those of `fourth.py`."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.zoo.case import Case, Data
from tests.zoo.fourth import short_signals
from tests.zoo.parts import Compute, compiled, many_rows, noisy, random, regressor, standard_rows
from tests.zoo.second import matching_pairs

__all__ = ["CASES"]

layers = keras.layers


class StatisticsPooling(keras.layers.Layer):
    """Mean and deviation over time, as speaker recognition has them."""

    def __init__(self, epsilon: float, name: str) -> None:
        super().__init__(name=name)
        self.epsilon = epsilon

    def call(self, x: Any) -> Any:
        mean = tf.reduce_mean(x, 1)
        variance = tf.reduce_mean(tf.square(x - mean[:, None]), 1)
        return tf.concat([mean, tf.sqrt(variance + self.epsilon)], -1)


def speaker_net(epsilon: float) -> Any:
    inputs = keras.Input((24, 3), name="input")
    x = layers.Conv1D(8, 3, activation="relu", name="conv")(inputs)
    x = StatisticsPooling(epsilon, "statistics")(x)
    return regressor(inputs, layers.Dense(16, "tanh", name="hidden")(x), 0.003)


def recordings_some_silent() -> Data:
    loudness = random(0).uniform(0.3, 1.5, (200 * 64, 1, 1))
    x = loudness * random(1).standard_normal((200 * 64, 24, 3))
    x[5::32] = 0
    loudness[5::32] = 0
    return Data(x.astype(np.float32), noisy(loudness[:, 0], 2))


def info_nce(by_hand: bool) -> Any:
    """InfoNCE as a layer: the similarity to the partner against the sum of those to all others."""
    left, right = keras.Input((16,), name="left"), keras.Input((16,), name="right")
    project = layers.Dense(16, name="project")
    unit = layers.UnitNormalization(name="unit")

    def loss_by_hand(a: Any, b: Any) -> Any:
        similar = tf.exp(tf.matmul(a, b, transpose_b=True) / 0.07)
        return -tf.math.log(tf.linalg.diag_part(similar) / tf.reduce_sum(similar, -1))[:, None]

    def loss(a: Any, b: Any) -> Any:
        similar = tf.matmul(a, b, transpose_b=True) / 0.07
        return -tf.linalg.diag_part(tf.nn.log_softmax(similar))[:, None]

    out = Compute(loss_by_hand if by_hand else loss, "info_nce")(unit(project(left)), unit(project(right)))
    model = keras.Model([left, right], out)
    return compiled(model, lambda _, loss: tf.reduce_mean(loss), keras.optimizers.Adam(0.003))


def thermometer() -> Any:
    """The head of a mixed_bfloat16 model was left in bfloat16, and its target is around 1,000."""
    inputs = keras.Input((16,), name="input")
    x = layers.Dense(32, "relu", name="hidden")(inputs)
    start = keras.initializers.Constant(1000.0)
    outputs = layers.Dense(1, bias_initializer=start, name="kelvin")(x)
    return compiled(keras.Model(inputs, outputs), "mse", keras.optimizers.Adam(0.01))


def temperatures() -> Data:
    data = many_rows()
    return Data(data.x, (1000 + 5 * data.y).astype(np.float32))


def small_net() -> Any:
    inputs = keras.Input((16,), name="input")
    x = layers.Dense(32, "tanh", name="hidden")(inputs)
    outputs = layers.Dense(1, name="head")(x)
    return compiled(keras.Model(inputs, outputs), "mse", keras.optimizers.SGD(1e-3, momentum=0.0))


def offset_targets() -> Data:
    data = standard_rows()
    return Data(data.x, data.y + 4)


def bilinear_scores() -> Any:
    """A bilinear form of raw counts in two steps: the second product is beyond float16, and a logarithm reads it."""
    left, right = keras.Input((16,), name="left"), keras.Input((16,), name="right")
    weights = layers.Dense(16, kernel_initializer=keras.initializers.Constant(0.1), name="weights")(left)
    score = layers.Dot(1, name="score")([weights, right])
    logged = layers.Lambda(lambda x: keras.ops.log(keras.ops.relu(x) + 1.0), name="logged")(score)
    return regressor([left, right], logged, 0.02)


def counts_of_pairs() -> Data:
    left, right = random(0).poisson(100, (2, 512, 16)) * random(1).uniform(0.3, 2, (2, 512, 1))
    target = np.log(left.mean(1, keepdims=True) * right.mean(1, keepdims=True))
    return Data({"left": left.astype(np.float32), "right": right.astype(np.float32)}, noisy(target, 2))


def rounded_phase() -> Any:
    """A modulo by hand: x - floor(x / 24) * 24, of hours since a start."""
    hours = keras.Input((1,), name="hours")

    def phase(x: Any) -> Any:
        within = x - tf.floor(x / 24.0) * 24.0
        return tf.concat([tf.sin(within * (np.pi / 12)), tf.cos(within * (np.pi / 12))], -1)

    return regressor(hours, Compute(phase, "time_of_day")(hours), 0.03)


def hours(until: float) -> Data:
    x = random(0).uniform(0, until, (512, 1))
    return Data(x.astype(np.float32), noisy(np.sin(x * (np.pi / 12)), 1))


def vision_transformer() -> Any:
    inputs = keras.Input((16, 16, 3), name="input")
    x = layers.Reshape((16, 16), name="tokens")(layers.Conv2D(16, 4, strides=4, name="patches")(inputs))
    for block in (1, 2):
        y = layers.LayerNormalization(name=f"norm_a{block}")(x)
        x = layers.Add(name=f"add_a{block}")([x, layers.MultiHeadAttention(2, 8, name=f"attention_{block}")(y, y)])
        y = layers.Dense(32, "gelu", name=f"wi_{block}")(layers.LayerNormalization(name=f"norm_b{block}")(x))
        x = layers.Add(name=f"add_b{block}")([x, layers.Dense(16, name=f"wo_{block}")(y)])
    return regressor(
        inputs, layers.GlobalAveragePooling1D(name="pool")(layers.LayerNormalization(name="norm")(x)), 2e-3
    )


def images() -> Data:
    colour = random(1).standard_normal((200 * 32, 3))
    x = random(0).standard_normal((200 * 32, 16, 16, 3), dtype=np.float32) + colour[:, None, None].astype(np.float32)
    return Data(x, noisy(colour @ np.array([[1.0], [-1.0], [0.5]]), 2, noise=1.0))


def temporal_convolutions() -> Any:
    inputs = keras.Input((32, 2), name="input")
    x = inputs
    for block, filters in enumerate((8, 16), start=1):
        x = layers.SeparableConv1D(filters, 5, padding="same", name=f"conv_{block}")(x)
        x = layers.Activation("silu", name=f"silu_{block}")(layers.LayerNormalization(name=f"norm_{block}")(x))
        x = layers.SpatialDropout1D(0.05, seed=block, name=f"dropout_{block}")(x)
        x = layers.AveragePooling1D(2, name=f"pool_{block}")(x)
    return regressor(inputs, layers.Flatten(name="flatten")(x), 0.003)


CASES = (
    Case(
        "silent_recordings",
        "The deviation of silence is the root of 1e-9, which is 0 in float16, where a root has an infinite slope.",
        partial(speaker_net, 1e-9),
        recordings_some_silent,
        truth=frozenset({"statistics"}),
        goes_nonfinite=True,
        source_layer="statistics",
        direction="backward",
        first_bad_step=0,
    ),
    Case(
        "info_nce_by_hand",
        "exp(1 / 0.07) is 1.6 million, infinite in float16.",
        partial(info_nce, True),
        matching_pairs,
        truth=frozenset({"info_nce"}),
        goes_nonfinite=True,
        source_layer="info_nce",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "bfloat16_head",
        "Predictions around 1,000 that vary by 5 are rounded to steps of 4 by a bfloat16 head. Silent.",
        thermometer,
        temperatures,
        truth=frozenset({"kelvin"}),
        policy="mixed_bfloat16",
    ),
    Case(
        "slow_sgd_bfloat16",
        "Variables in bfloat16, a learning rate of 1e-3: updates smaller than half a unit in the last place are lost.",
        small_net,
        offset_targets,
        action="float32_variables",
        policy="bfloat16",
        repair={"policy": "mixed_bfloat16"},
    ),
    Case(
        "bilinear_score",
        "The product of two counts, summed, exceeds 65,504; the logarithm casts it back.",
        bilinear_scores,
        counts_of_pairs,
        truth=frozenset({"score", "logged"}),
        goes_nonfinite=True,
        source_layer="score",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "time_of_day",
        "Hours of up to 20,000 are rounded to steps of 8 and 16 before a day is taken off them. Silent.",
        rounded_phase,
        partial(hours, 20_000.0),
        truth=frozenset({"time_of_day"}),
    ),
    Case(
        "statistics_pooling",
        "Deviations with an epsilon of 1e-3, of silence too.",
        partial(speaker_net, 1e-3),
        recordings_some_silent,
        action="none",
    ),
    Case(
        "info_nce",
        "InfoNCE by a log-softmax.",
        partial(info_nce, False),
        matching_pairs,
        action="none",
        first_bad_step=3,
    ),
    Case(
        "vision_transformer",
        "A vision transformer.",
        vision_transformer,
        images,
        action="none",
        first_bad_step=0,
        batch=32,
    ),
    Case(
        "temporal_net",
        "Separable convolutions in time; float16 drops other values, hence the bound.",
        temporal_convolutions,
        short_signals,
        action="none",
        bound=0.06,
        first_bad_step=5,
        batch=32,
    ),
    Case("day_of_hours", "Hours of up to 100.", rounded_phase, partial(hours, 100.0), action="none"),
)
