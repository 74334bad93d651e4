"""Cases written after the rules had been mended for those of `sixth.py`."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.zoo.case import Case, Data
from tests.zoo.parts import Compute, compiled, many_rows, noisy, random, regressor

__all__ = ["CASES"]

layers = keras.layers
ROWS = 200 * 64  # as many as 200 steps take


def policy_ratio() -> Any:
    """The log-probability of an action of many dimensions, less what it was under the policy that acted."""
    action, before = keras.Input((64,), name="action"), keras.Input((1,), name="before")

    def log_probability(x: Any) -> Any:
        return tf.reduce_sum(-0.5 * tf.square(x) - 8.0, -1, keepdims=True)

    log_prob = Compute(log_probability, "log_prob")(action)
    ratio = Compute(lambda new, old: tf.exp(new - old), "ratio")(log_prob, before)
    return regressor([action, before], ratio, 0.03)


def actions() -> Data:
    action = random(0).standard_normal((ROWS, 64))
    log_prob = (-0.5 * action**2 - 8).sum(1, keepdims=True)
    moved = 0.2 * random(1).standard_normal((ROWS, 1))
    data = {"action": action.astype(np.float32), "before": (log_prob - moved).astype(np.float32)}
    return Data(data, noisy(np.exp(moved), 2))


def taxi_fare() -> Any:
    """The distance between two places in a city, by the haversine formula."""
    start, end = keras.Input((2,), name="start"), keras.Input((2,), name="end")

    def haversine(a: Any, b: Any) -> Any:
        a, b = a * (np.pi / 180), b * (np.pi / 180)
        sines = tf.square(tf.sin((b - a) / 2))
        inside = sines[:, :1] + tf.cos(a[:, :1]) * tf.cos(b[:, :1]) * sines[:, 1:]
        return 2 * 6371 * tf.asin(tf.sqrt(inside + 1e-12))

    distance = Compute(haversine, "haversine")(start, end)
    x = layers.Dense(8, "softplus", name="hidden")(distance)
    return regressor([start, end], x, 0.02)


def rides() -> Data:
    start = np.array([40.75, -73.98]) + 0.03 * random(0).standard_normal((ROWS, 2))
    end = start + 0.02 * random(1).standard_normal((ROWS, 2))
    kilometres = np.hypot(111.2 * (end - start)[:, :1], 84.2 * (end - start)[:, 1:])
    return Data({"start": start.astype(np.float32), "end": end.astype(np.float32)}, noisy(kilometres, 2))


def fourier_mixing(orthonormal: bool) -> Any:
    """FNet: tokens are mixed by a Fourier transform, which runs in complex64 and is cast back."""
    inputs = keras.Input((64, 16), name="input")

    def mix(x: Any) -> Any:
        spectrum = tf.math.real(tf.signal.fft2d(tf.cast(x, tf.complex64)))
        return tf.cast(spectrum / (np.sqrt(64 * 16) if orthonormal else 1.0), x.dtype)

    x = layers.Dense(16, name="tokens")(inputs)
    x = layers.LayerNormalization(name="norm")(Compute(mix, "fourier")(x))
    x = layers.Dense(8, "tanh", name="hidden")(layers.Flatten(name="flat")(x))
    return regressor(inputs, x, 0.002)


def bright_patches(brightness: float) -> Data:
    level = random(0).uniform(0.5, 1.5, (ROWS, 1, 16))
    x = brightness * (level + 0.3 * random(1).standard_normal((ROWS, 64, 16)))
    return Data(x.astype(np.float32), noisy(level[:, 0, :1] - level[:, 0, 1:2], 2))


def survival(by_logarithms: bool) -> Any:
    """The risk that 50 periods of a small hazard each come to."""
    hazard = keras.Input((50,), name="hazard")

    def product(hazard: Any) -> Any:
        return 40 * (1 - tf.reduce_prod(1 - hazard, 1, keepdims=True))

    def logarithms(hazard: Any) -> Any:
        return -40 * tf.reduce_sum(tf.math.log1p(-hazard), 1, keepdims=True)

    out = Compute(logarithms if by_logarithms else product, "survival")(hazard)
    return regressor(hazard, out, 0.03)


def patients() -> Data:
    hazard = 5e-4 * np.exp(0.5 * random(0).standard_normal((ROWS, 1)) + 0.5 * random(1).standard_normal((ROWS, 50)))
    return Data(hazard.astype(np.float32), noisy(hazard.sum(1, keepdims=True), 2))


def box_overlap() -> Any:
    """The overlap of predicted and true boxes in pixels: their areas are products of hundreds."""
    inputs, wanted = keras.Input((16,), name="input"), keras.Input((4,), name="wanted")
    x = layers.Dense(32, "tanh", name="hidden")(inputs)
    boxes = layers.Rescaling(1000.0, name="in_pixels")(layers.Dense(4, "sigmoid", name="boxes")(x))

    def loss(box: Any, true: Any) -> Any:
        low = tf.maximum(box[:, :2] - box[:, 2:] / 2, true[:, :2] - true[:, 2:] / 2)
        high = tf.minimum(box[:, :2] + box[:, 2:] / 2, true[:, :2] + true[:, 2:] / 2)
        both = tf.reduce_prod(tf.maximum(high - low, 0), -1)
        either = tf.reduce_prod(box[:, 2:], -1) + tf.reduce_prod(true[:, 2:], -1) - both
        return (1 - both / (either + 1.0))[:, None]

    out = Compute(loss, "overlap")(boxes, wanted)
    model = keras.Model([inputs, wanted], out)
    return compiled(model, lambda _, loss: tf.reduce_mean(loss), keras.optimizers.Adam(0.005))


def boxes() -> Data:
    x = many_rows().x
    centre = 500 + 80 * np.tanh(x[:, :2])
    size = 400 + 150 * np.tanh(x[:, 2:4] + 0.3 * random(3).standard_normal((ROWS, 2)))
    wanted = np.concatenate([centre, size], -1).astype(np.float32)
    return Data({"input": x, "wanted": wanted}, np.zeros((ROWS, 1), np.float32))


def year_of_a_song() -> Any:
    inputs = keras.Input((16,), name="input")
    x = layers.Dense(32, "relu", name="hidden")(inputs)
    year = layers.Dense(1, bias_initializer=keras.initializers.Constant(1990.0), name="year")(x)
    return compiled(keras.Model(inputs, year), "mse", keras.optimizers.Adam(0.02))


def songs() -> Data:
    data = many_rows()
    return Data(data.x, (1990 + 10 * data.y).astype(np.float32))


CASES = (
    Case(
        "policy_ratio",
        "The log-probabilities of two policies, about -540, are rounded to steps of a half before one is taken from "
        "the other. Silent.",
        policy_ratio,
        actions,
        truth=frozenset({"log_prob", "ratio"}),
    ),
    Case(
        "taxi_fare",
        "Degrees are rounded to steps of 3 km, and the squares of small angles vanish. Silent.",
        taxi_fare,
        rides,
        truth=frozenset({"haversine"}),
    ),
    Case(
        "fourier_mixing",
        "The constant part of a Fourier transform is the sum of all values, beyond 65,504.",
        partial(fourier_mixing, False),
        partial(bright_patches, 1000.0),
        truth=frozenset({"fourier"}),
        goes_nonfinite=True,
        source_layer="fourier",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "survival_bfloat16",
        "One less a hazard of 0.0005 is 1 in bfloat16, and so is the product of fifty of them. Silent.",
        partial(survival, False),
        patients,
        truth=frozenset({"survival"}),
        policy="mixed_bfloat16",
    ),
    Case(
        "box_overlap",
        "Areas of boxes in pixels exceed 65,504: Inf - Inf is NaN.",
        box_overlap,
        boxes,
        truth=frozenset({"overlap"}),
        goes_nonfinite=True,
        source_layer="overlap",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "survival_by_logarithms_bfloat16",
        "The same by log1p.",
        partial(survival, True),
        patients,
        action="none",
        policy="mixed_bfloat16",
    ),
    Case(
        "orthonormal_fourier_mixing",
        "A Fourier transform that keeps the length.",
        partial(fourier_mixing, True),
        partial(bright_patches, 100.0),
        action="none",
    ),
    Case(
        "year_of_a_song",
        "A float16 head puts out whole years; what is left to learn is larger by far.",
        year_of_a_song,
        songs,
        action="none",
        first_bad_step=0,
    ),
)
