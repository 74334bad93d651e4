"""Values that outgrow float16, or vanish in it, on their way through a model."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.zoo.case import Case, Data
from tests.zoo.parts import Compute, linear_target, noisy, random, regressor, standard_rows

__all__ = ["CASES"]

layers = keras.layers


def t5_like_feed_forward() -> Any:
    inputs = keras.Input((16,), name="input")
    stream = layers.Dense(16, name="embed")(inputs)
    hidden = layers.Dense(32, "relu", name="wi")(stream)
    large = keras.initializers.RandomNormal(stddev=1e4, seed=3)
    out = layers.Dense(16, kernel_initializer=large, name="wo")(hidden)
    stream = layers.Add(name="residual")([stream, out])
    return regressor(inputs, layers.LayerNormalization(name="norm")(stream))


def residual_stream() -> Any:
    """Block by block the stream grows: 1,000, 4,000, 16,000, then some 80,000."""
    inputs = keras.Input((16,), name="input")
    stream = layers.Dense(16, name="embed")(inputs)
    for block, grows_by in enumerate((1e3, 3e3, 12e3, 32e3, 32e3, 1e3), start=1):
        branch = layers.LayerNormalization(name=f"norm_{block}")(stream)
        signs = np.where(np.arange(16) % 2, grows_by, -grows_by)
        branch = layers.Dense(
            16,
            kernel_initializer=keras.initializers.RandomNormal(stddev=grows_by / 40, seed=block),
            bias_initializer=keras.initializers.Constant(signs),
            name=f"branch_{block}",
        )(branch)
        stream = layers.Add(name=f"add_{block}")([stream, branch])
    return regressor(inputs, layers.LayerNormalization(name="norm")(stream))


def exponential() -> Any:
    inputs = keras.Input((16,), name="input")
    grown = Compute(tf.exp, "exp")(inputs)
    return regressor(inputs, Compute(lambda x: tf.math.log(x + 1.0), "log1p")(grown))


def exponents_up_to_12() -> Data:
    x = random(0).uniform(-4, 12, (512, 16)).astype(np.float32)
    return Data(x, noisy(linear_target(x - 4, 1), 2))


def logarithm() -> Any:
    inputs = keras.Input((16,), name="input")
    features = Compute(tf.math.log, "log")(inputs)
    return regressor(inputs, layers.Dense(16, "tanh", name="hidden")(features), 0.003)


def probabilities_down_to_1e_8() -> Data:
    exponents = random(0).uniform(-8.3, -1, (512, 16))
    return Data((10.0**exponents).astype(np.float32), noisy(linear_target(exponents + 4.5, 1), 2))


def area() -> Any:
    inputs = keras.Input((262_144,), name="input")
    total = Compute(lambda x: tf.reduce_sum(x, -1, keepdims=True), "total")(inputs)
    return regressor(inputs, Compute(lambda x: x * 2.0**-18, "mean")(total), 0.05)


def mostly_ones() -> Data:
    share = random(0).uniform(0.1, 1, 32)
    x = np.stack([np.arange(262_144) < part * 262_144 for part in share]).astype(np.float32)
    x[-1] = 1  # 262,144 ones
    return Data(x, noisy(x.mean(1, keepdims=True), 1))


def running_count() -> Any:
    inputs = keras.Input((4096,), name="input")
    counts = Compute(lambda x: tf.cumsum(x, -1), "count")(inputs)
    shares = Compute(lambda x: x[:, -1:] * 2.0**-12, "share")(counts)
    return regressor(inputs, shares, 0.03)


def long_runs_of_ones() -> Data:
    share = random(0).uniform(0.3, 1, (256, 1))
    x = (random(1).uniform(size=(256, 4096)) < share).astype(np.float32)
    return Data(x, noisy(share, 2))


def down_and_up() -> Any:
    inputs = keras.Input((16,), name="input")
    x = layers.Dense(16, "tanh", name="embed")(inputs)
    x = Compute(lambda x: x * 2.0**-14 * 2.0**-10, "down")(x)
    x = layers.Dense(16, use_bias=False, name="mix")(x)
    x = Compute(lambda x: x * 2.0**14 * 2.0**10, "up")(x)
    return regressor(inputs, x)


def first_layer() -> Any:
    inputs = keras.Input((16,), name="input")
    small = keras.initializers.RandomNormal(stddev=0.001, seed=3)
    x = layers.Dense(16, "relu", kernel_initializer=small, name="first")(inputs)
    return regressor(inputs, layers.Dense(16, "tanh", name="second")(x))


def unscaled_amounts() -> Data:
    """One feature is an amount of money up to 90,000; 70,000 is beyond float16."""
    data = standard_rows()
    data.x[:, 0] = 7e4 + 5e3 * data.x[:, 0]
    return data


CASES = (
    Case(
        "t5_feed_forward",
        "The output of a feed-forward block exceeds 65,504; the residual sum that reads it casts it back.",
        t5_like_feed_forward,
        standard_rows,
        truth=frozenset({"wo", "residual"}),
        goes_nonfinite=True,
        source_layer="wo",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "residual_stream",
        "Each block adds to the stream until the sum of two finite values exceeds 65,504.",
        residual_stream,
        standard_rows,
        truth=frozenset({"add_5", "add_6"}),
        extras={
            "add_4": "its values come within half a bit of the limit",
            "branch_5": "its values come within a bit of the limit",
            "branch_4": "its values come within a bit of the limit",
        },
        goes_nonfinite=True,
        source_layer="add_5",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "exp_12",
        "exp(12) is 162,755; the layer that reads it casts it back to float16.",
        exponential,
        exponents_up_to_12,
        truth=frozenset({"exp", "log1p"}),
        goes_nonfinite=True,
        source_layer="exp",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "log_1e_8",
        "1e-8 is zero in float16, and its logarithm is minus infinity.",
        logarithm,
        probabilities_down_to_1e_8,
        truth=frozenset({"log"}),
        goes_nonfinite=True,
        source_layer="log",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "sum_of_ones",
        "The sum of 262,144 ones is infinite; the layer that divides by their number reads it.",
        area,
        mostly_ones,
        truth=frozenset({"total", "mean"}),
        batch=4,
        goes_nonfinite=True,
        source_layer="total",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "cumsum_2048",
        "A running sum of ones stands still at 2,048: 2,048 + 1 is 2,048 in float16. Silent.",
        running_count,
        long_runs_of_ones,
        truth=frozenset({"count"}),
    ),
    Case(
        "scaled_down_and_up",
        "Activations are scaled down by 2^24, mixed and scaled up again; in between float16 holds next to nothing.",
        down_and_up,
        standard_rows,
        truth=frozenset({"down", "mix", "up"}),
        goes_nonfinite=True,
        source_layer="up",  # TensorFlow folds its two factors into 2^24, which float16 cannot hold
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "input_7e4",
        "The data hold values beyond 65,504, which the first layer casts to float16.",
        first_layer,
        unscaled_amounts,
        action="scale_input",
        also_right=frozenset({"keep_float32"}),
        suspects=frozenset({"first"}),
        repair={"data": standard_rows},
        goes_nonfinite=True,
        source_layer="first",
        direction="forward",
        first_bad_step=0,
    ),
)
