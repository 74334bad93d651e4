"""Norms: sums of squares that overflow, epsilons that vanish, statistics that are clipped."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.zoo.case import Case, Data
from tests.zoo.parts import Compute, linear_target, noisy, random, regressor, standard_rows

__all__ = ["CASES"]

layers = keras.layers


def own_norm(x: Any) -> Any:
    """A layer norm written by hand; its epsilon is one that float16 holds."""
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    variance = tf.reduce_mean(tf.square(centred), -1, keepdims=True)
    return centred * tf.math.rsqrt(variance + 1e-3)


def norm_of_large_values() -> Any:
    inputs = keras.Input((16,), name="input")
    x = layers.Dense(32, name="project")(inputs)
    x = Compute(own_norm, "norm")(x)
    return regressor(inputs, layers.Dense(16, "tanh", name="hidden")(x))


def values_of_500() -> Data:
    data = standard_rows()
    return Data(data.x * 500, data.y)


def norm_with_epsilon(epsilon: float) -> Any:
    def divide_by_length(x: Any) -> Any:
        return x * tf.math.rsqrt(tf.reduce_sum(tf.square(x), -1, keepdims=True) + epsilon)

    inputs = keras.Input((16,), name="input")
    x = layers.Dense(32, use_bias=False, name="project")(inputs)
    x = Compute(divide_by_length, "norm")(x)
    return regressor(inputs, layers.Dense(16, "tanh", name="hidden")(x))


def empty_rows_from_batch_37(batch: int = 64) -> Data:
    data = standard_rows(50 * batch)
    data.x[37 * batch :: batch] = 0
    return data


def instance_norm(epsilon: float) -> Any:
    def normalize(x: Any) -> Any:
        mean = tf.reduce_mean(x, (1, 2), keepdims=True)
        variance = tf.reduce_mean(tf.square(x - mean), (1, 2), keepdims=True)
        return (x - mean) * tf.math.rsqrt(variance + epsilon)

    inputs = keras.Input((8, 8, 4), name="input")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = Compute(normalize, "norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.Conv2D(8, 3, strides=2, name="conv_2")(x)
    x = layers.Flatten(name="flatten")(x)
    return regressor(inputs, x, 0.003)


def images_some_empty() -> Data:
    x = random(0).standard_normal((512, 8, 8, 4)).astype(np.float32)
    x[5::16] = 0
    return Data(x, noisy(linear_target(x[:, 2:5, 2:5], 1), 2))


def unit_vectors() -> Any:
    inputs = keras.Input((32,), name="input")
    x = layers.UnitNormalization(name="unit")(inputs)
    return regressor(inputs, layers.Dense(16, "tanh", name="hidden")(x), 0.03)


def vectors_of_300() -> Data:
    data = standard_rows(features=32)
    return Data(data.x * 300, data.y)


def norm_by_moments() -> Any:
    def normalize(x: Any) -> Any:
        mean, variance = keras.ops.moments(x, -1, keepdims=True)
        return (x - mean) * tf.math.rsqrt(variance + 1e-3)

    inputs = keras.Input((16,), name="input")
    x = Compute(normalize, "norm")(inputs)
    return regressor(inputs, layers.Dense(16, "tanh", name="hidden")(x))


def values_around_1e5() -> Data:
    data = standard_rows()
    return Data(data.x * 3e4 + 1e5, data.y)


CASES = (
    Case(
        "norm_variance",
        "A hand-written norm squares values of 500: the variance is infinite and the output zero. Silent.",
        norm_of_large_values,
        values_of_500,
        truth=frozenset({"norm"}),
        first_bad_step=0,  # its loss scale seeks its level
    ),
    Case(
        "tiny_epsilon",
        "1e-8 is zero in float16, and an empty row has the length 0: 0 * rsqrt(0) is NaN. "
        "Empty rows come from step 37 on.",
        partial(norm_with_epsilon, 1e-8),
        empty_rows_from_batch_37,
        truth=frozenset({"norm"}),
        also_right=frozenset({"change_constant"}),
        repair={"make": partial(norm_with_epsilon, 1e-3)},
        goes_nonfinite=True,
        source_layer="norm",
        direction="forward",
        first_bad_step=37,
    ),
    Case(
        "instance_norm",
        "An instance norm of an empty image has variance 0, and its epsilon 1e-8 is zero in float16: 0 * Inf is NaN.",
        partial(instance_norm, 1e-8),
        images_some_empty,
        truth=frozenset({"norm"}),
        also_right=frozenset({"change_constant"}),
        repair={"make": partial(instance_norm, 1e-3)},
        goes_nonfinite=True,
        source_layer="norm",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "unit_normalization_300",
        "UnitNormalization of vectors whose squares exceed 65,504 puts out zeros. Silent.",
        unit_vectors,
        vectors_of_300,
        truth=frozenset({"unit"}),
    ),
    Case(
        "moments_bfloat16",
        "keras.ops.moments clips what it returns to float16's range, in bfloat16 too: a mean of 100,000 "
        "becomes 65,536. Silent.",
        norm_by_moments,
        values_around_1e5,
        truth=frozenset({"norm"}),
        policy="mixed_bfloat16",
    ),
)
