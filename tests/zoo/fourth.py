"""Cases written after the rules had been mended for those of `third.py`: what the rules are worth by then."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.zoo.case import Case, Data
from tests.zoo.parts import Compute, compiled, linear_target, many_rows, noisy, random, regressor, standard_rows

__all__ = ["CASES"]

layers = keras.layers


def covariance_pooling() -> Any:
    """Second-order pooling: the products of all channels, summed over the pixels, then their signed root."""

    def covariance(x: Any) -> Any:
        flat = tf.reshape(x, (-1, 64, 4))
        return tf.reshape(tf.matmul(flat, flat, transpose_a=True), (-1, 16))

    inputs = keras.Input((8, 8, 3), name="input")
    x = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    x = Compute(covariance, "covariance")(x)
    x = Compute(lambda x: tf.sign(x) * tf.sqrt(tf.abs(x) + 1e-2), "signed_root")(x)
    return regressor(inputs, layers.LayerNormalization(name="norm")(x), 0.003)


def raw_pixels() -> Data:
    shade = random(1).uniform(0.2, 1, (512, 1, 1, 1))
    x = 255 * np.clip(shade * random(0).uniform(0.5, 1, (512, 8, 8, 3)), 0, 1)
    return Data(x.astype(np.float32), noisy(shade[:, :, 0, 0] ** 2, 2))


def poisson_rate() -> Any:
    """A Poisson regression whose rate is the exponential of a float16 layer, in the model."""
    inputs = keras.Input((8,), name="input")
    start = keras.initializers.Constant(10.0)
    x = layers.Dense(16, "tanh", name="hidden")(inputs)
    log_rate = layers.Dense(1, bias_initializer=start, name="log_rate")(x)
    rate = layers.Activation("exponential", name="rate")(log_rate)
    outputs = layers.Rescaling(1.0, dtype="float32", name="expected")(rate)

    def deviance(y: Any, rate: Any) -> Any:
        return tf.reduce_mean(tf.square(tf.math.log(y) - tf.math.log(rate + 1.0)), -1)

    return compiled(keras.Model(inputs, outputs), deviance, keras.optimizers.Adam(0.01))


def large_counts() -> Data:
    x = random(0).standard_normal((512, 8)).astype(np.float32)
    logs = 10.5 + linear_target(x, 1)
    return Data(x, np.exp(logs + 0.3 * random(2).standard_normal(logs.shape)).astype(np.float32))


def inverse_distances() -> Any:
    """Weights by inverse squared distance, as for interpolation; a point may lie upon a centre."""
    inputs = keras.Input((2,), name="input")
    grid = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), -1).reshape(9, 2).astype(np.float32)

    def weights(x: Any) -> Any:
        squares = tf.reduce_sum(tf.square(x[:, None] - tf.cast(grid, x.dtype)), -1)
        inverse = 1.0 / (squares + 1e-8)
        return inverse / tf.reduce_sum(inverse, -1, keepdims=True)

    x = Compute(weights, "interpolation")(inputs)
    return regressor(inputs, x, 0.03)


def points_near_a_grid() -> Data:
    grid = random(0).integers(-1, 2, (512, 2))
    x = (grid + 0.2 * random(1).standard_normal((512, 2))).astype(np.float32)
    x[::16] = grid[::16]
    return Data(x, noisy(np.sin(2 * x[:, :1]) + x[:, 1:], 2))


def calendar() -> Any:
    """The day of the week out of a day number, by a remainder, in a layer of its own."""
    days = keras.Input((1,), name="days")
    weekday = layers.Lambda(lambda d: keras.ops.one_hot(keras.ops.cast(d[:, 0] % 7, "int32"), 7), name="weekday")(days)
    return regressor(days, layers.Dense(8, "relu", name="hidden")(weekday), 0.02)


def days_since_1970() -> Data:
    days = random(0).integers(18000, 20500, (1024, 1))
    worth = random(1).standard_normal(7)
    return Data(days.astype(np.float32), noisy(worth[days % 7], 2))


def moving_baseline() -> Any:
    """A signal of small changes upon a high baseline: its differences are taken in the model."""
    signal = keras.Input((32, 1), name="signal")
    change = layers.Lambda(lambda x: x[:, 1:] - x[:, :-1], name="change")(signal)
    x = layers.Conv1D(8, 3, activation="relu", name="conv")(change)
    return regressor(signal, layers.GlobalAveragePooling1D(name="pool")(x), 0.01)


def drifting_signals() -> Data:
    roughness = random(0).uniform(0.1, 1, (512, 1, 1))
    walk = np.cumsum(roughness * random(1).standard_normal((512, 32, 1)), 1)
    x = walk + random(2).uniform(200, 400, (512, 1, 1))
    return Data(x.astype(np.float32), noisy(roughness[:, 0], 3))


def hot_softmax(temperature: float) -> Any:
    """Prototypes: a softmax of negative squared distances over a small temperature, written in two layers."""
    inputs = keras.Input((16,), name="input")
    # Nothing is learnt through a softmax as hard as at 1e-3.
    x = layers.Dense(16, trainable=temperature > 1, name="embed")(inputs)
    centres = random(5).standard_normal((12, 16)).astype(np.float32) * 4

    def distances(x: Any) -> Any:
        return tf.reduce_sum(tf.square(x[:, None] - tf.cast(centres, x.dtype)), -1)

    squares = Compute(distances, "squares")(x)
    scores = Compute(lambda d: -d / temperature, "scores")(squares)
    return regressor(inputs, layers.Softmax(name="softmax")(scores), 0.01)


def fixed_scale_on_tiny(scale: float) -> Any:
    """A loss that is divided by the number of all pixels twice, under a fixed loss scale that is too low."""
    inputs = keras.Input((16,), name="input")
    x = layers.Dense(32, "tanh", name="hidden_1")(inputs)
    x = layers.Dense(32, "tanh", name="hidden_2")(x)
    outputs = layers.Dense(1, dtype="float32", name="head")(x)
    adam = keras.optimizers.Adam(0.01, epsilon=1e-16, loss_scale_factor=scale)

    def tiny(y: Any, p: Any) -> Any:
        return tf.reduce_mean(tf.square(y - p), -1) / 4096.0**2

    return compiled(keras.Model(inputs, outputs), tiny, adam, auto_scale_loss=False)


def house_prices() -> Any:
    """Prices in full, which only the float32 head and the loss see."""
    inputs = keras.Input((16,), name="input")
    x = layers.Dense(32, "relu", name="hidden")(inputs)
    outputs = layers.Dense(1, dtype="float32", name="price")(x)
    scale = layers.Rescaling(1e5, 4e5, dtype="float32", name="in_full")(outputs)
    return compiled(keras.Model(inputs, scale), "mape", keras.optimizers.Adam(0.003))


def prices() -> Data:
    data = many_rows()
    return Data(data.x, (4e5 + 1e5 * np.clip(data.y, -3, 3)).astype(np.float32))


def wide_and_deep() -> Any:
    """Large whole numbers go to a float32 normalization, ids to an embedding, the rest to the deep part."""
    amounts, ids = keras.Input((4,), name="amounts"), keras.Input((3,), dtype="int32", name="ids")
    wide = layers.Normalization(mean=2e5, variance=1e10, dtype="float32", name="normalized")(amounts)
    deep = layers.Flatten(name="flatten")(layers.Embedding(100, 8, name="embedding")(ids))
    x = layers.Concatenate(name="both")([wide, deep])
    x = layers.Dense(32, "gelu", name="hidden")(layers.BatchNormalization(name="norm")(x))
    return regressor([amounts, ids], x, 0.003)


def accounts() -> Data:
    amounts = random(0).normal(2e5, 1e5, (200 * 64, 4))
    ids = random(1).integers(0, 100, (200 * 64, 3))
    worth = random(2).standard_normal(100)
    target = np.tanh(amounts[:, :1] / 1e5 - 2) + worth[ids].mean(1, keepdims=True)
    data = {"amounts": amounts.astype(np.float32), "ids": ids.astype(np.int32)}
    return Data(data, noisy(target, 3))


def gated_convolutions() -> Any:
    """WaveNet-like: dilated causal convolutions, tanh times sigmoid, skip connections."""
    inputs = keras.Input((32, 2), name="input")
    x = layers.Conv1D(8, 1, name="stem")(inputs)
    skips = []
    for block, dilation in enumerate((1, 2, 4), start=1):
        options: dict[str, Any] = {"padding": "causal", "dilation_rate": dilation}
        gate = layers.Conv1D(8, 2, activation="sigmoid", name=f"gate_{block}", **options)(x)
        value = layers.Conv1D(8, 2, activation="tanh", name=f"value_{block}", **options)(x)
        y = layers.Multiply(name=f"gated_{block}")([gate, value])
        skips.append(layers.Conv1D(8, 1, name=f"skip_{block}")(y))
        x = layers.Add(name=f"add_{block}")([x, layers.Conv1D(8, 1, name=f"mix_{block}")(y)])
    x = layers.ReLU(name="relu")(layers.Add(name="skips")(skips))
    return regressor(inputs, layers.GlobalAveragePooling1D(name="pool")(x), 0.003)


def short_signals() -> Data:
    x = random(0).standard_normal((200 * 32, 32, 2)).astype(np.float32)
    return Data(x, noisy(linear_target(x[:, -6:], 1), 2))


def dead_units() -> Any:
    """A layer of which no unit is ever active, beside one that works: nothing to do with precision."""
    inputs = keras.Input((16,), name="input")
    never = keras.initializers.Constant(-60.0)
    dead = layers.ReLU(name="never")(layers.Dense(8, bias_initializer=never, name="dead")(inputs))
    alive = layers.Dense(32, "relu", name="alive")(inputs)
    return regressor(inputs, layers.Concatenate(name="both")([dead, alive]), 0.003)


def calendar_years() -> Any:
    """Years are whole numbers below 2,048, which float16 holds exactly."""
    years = keras.Input((2,), name="years")
    age = layers.Subtract(name="age")([years[:, :1], years[:, 1:]])
    return regressor(years, layers.Dense(8, "tanh", name="hidden")(age), 0.01)


def years() -> Data:
    built = random(0).integers(2005, 2015, (200 * 64, 1))
    sold = built + random(1).integers(0, 9, built.shape)
    x = np.concatenate([sold, built], 1).astype(np.float32)
    return Data(x, noisy(np.exp(-(sold - built) / 4.0), 2))


CASES = (
    Case(
        "covariance_pooling",
        "Sums of products of pixels up to 255 exceed 65,504; the root that would mend that casts them back.",
        covariance_pooling,
        raw_pixels,
        truth=frozenset({"covariance", "signed_root"}),
        goes_nonfinite=True,
        source_layer="covariance",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "exponential_rate",
        "The rate of counts, the exponential of 11 and more, is infinite in float16.",
        poisson_rate,
        large_counts,
        truth=frozenset({"rate"}),
        goes_nonfinite=True,
        source_layer="rate",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "inverse_distance",
        "A point upon a centre has the distance 0, and 1e-8 is 0 in float16: Inf / Inf is NaN.",
        inverse_distances,
        points_near_a_grid,
        truth=frozenset({"interpolation"}),
        goes_nonfinite=True,
        source_layer="interpolation",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "day_of_week",
        "Day numbers of 20,000 are rounded to steps of 16 before the remainder by 7 is taken. Silent.",
        calendar,
        days_since_1970,
        truth=frozenset({"weekday"}),
    ),
    Case(
        "change_of_signal_bfloat16",
        "Changes of 0.5 upon a baseline of 300 are lost in bfloat16, which knows steps of 2 there. Silent.",
        moving_baseline,
        drifting_signals,
        truth=frozenset({"change"}),
        policy="mixed_bfloat16",
    ),
    Case(
        "cold_prototypes",
        "Distances of some hundreds over a temperature of 1e-3 exceed 65,504: a row of minus infinity has no softmax.",
        partial(hot_softmax, 1e-3),
        many_rows,
        truth=frozenset({"scores", "softmax"}),
        goes_nonfinite=True,
        source_layer="scores",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "fixed_scale_too_low",
        "A fixed loss scale of 16, and a loss divided by 16 million: the gradients vanish in float16. Silent.",
        partial(fixed_scale_on_tiny, 16.0),
        standard_rows,
        action="raise_loss_scale",
        repair={"make": partial(fixed_scale_on_tiny, 2.0**28)},
        suspects=frozenset({"hidden_1", "hidden_2"}),
    ),
    Case(
        "house_prices", "Labels of 400,000 go to the loss only.", house_prices, prices, action="none", first_bad_step=0
    ),
    Case("wide_and_deep", "Amounts of 200,000 go to a float32 layer.", wide_and_deep, accounts, action="none"),
    Case(
        "gated_convolutions",
        "Dilated convolutions, tanh times sigmoid.",
        gated_convolutions,
        short_signals,
        action="none",
        batch=32,
    ),
    Case("dead_units", "Units that are never active.", dead_units, many_rows, action="none"),
    Case("years", "Years, and their differences.", calendar_years, years, action="none"),
    Case(
        "warm_prototypes",
        "The softmax of distances over a temperature of 30.",
        partial(hot_softmax, 30.0),
        many_rows,
        action="none",
    ),
)
