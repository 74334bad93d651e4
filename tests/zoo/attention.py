"""Attention written by hand: masks that float16 cannot hold, a softmax that overflows."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.zoo.case import Case, Data
from tests.zoo.parts import Compute, noisy, random, regressor

__all__ = ["CASES"]

layers = keras.layers


def masked_attention(constant: float) -> Any:
    tokens, present = keras.Input((8, 16), name="tokens"), keras.Input((1, 8), name="present")
    query, key, value = (layers.Dense(16, name=name)(tokens) for name in ("query", "key", "value"))
    scores = Compute(lambda q, k: tf.matmul(q, k, transpose_b=True) / 4, "scores")(query, key)
    masked = Compute(lambda scores, present: scores + (1 - present) * constant, "mask")(scores, present)
    weights = layers.Activation("softmax", name="softmax")(masked)
    mixed = Compute(tf.matmul, "mix")(weights, value)
    return regressor([tokens, present], layers.GlobalAveragePooling1D(name="pool")(mixed))


def padded_sequences() -> Data:
    """Sequences of 0 to 8 tokens; some batches hold an empty one."""
    tokens = random(0).standard_normal((512, 8, 16)).astype(np.float32)
    length = random(1).integers(1, 9, 512)
    length[3::64] = 0
    present = (np.arange(8) < length[:, None]).astype(np.float32)
    seen = tokens * present[:, :, None]
    mean = seen.sum(1) / np.maximum(length, 1)[:, None]
    target = mean @ random(2).standard_normal((16, 1))
    return Data({"tokens": tokens, "present": present[:, None]}, noisy(target, 3))


def naive_softmax(scores: Any) -> Any:
    """A softmax that does not subtract the maximum first."""
    exponentials = tf.exp(scores)
    return exponentials / tf.reduce_sum(exponentials, -1, keepdims=True)


def naive_attention(softmax: Any) -> Any:
    tokens = keras.Input((8, 16), name="tokens")
    query, key, value = (layers.Dense(16, name=name)(tokens) for name in ("query", "key", "value"))
    scores = Compute(lambda q, k: tf.matmul(q, k, transpose_b=True), "scores")(query, key)
    weights = Compute(softmax, "softmax")(scores)
    mixed = Compute(tf.matmul, "mix")(weights, value)
    return regressor(tokens, layers.GlobalAveragePooling1D(name="pool")(mixed))


def sequences() -> Data:
    tokens = (1.2 * random(0).standard_normal((512, 8, 16))).astype(np.float32)
    target = tokens.mean(1) @ random(2).standard_normal((16, 1))
    return Data(tokens, noisy(target, 3))


def large_scores() -> Any:
    """Queries and keys are finite, their products exceed 65,504; Keras' softmax cannot mend that."""
    tokens = keras.Input((8, 16), name="tokens")
    query, key, value = (layers.Dense(16, name=name)(tokens) for name in ("query", "key", "value"))
    scores = Compute(lambda q, k: tf.matmul(q, k, transpose_b=True), "scores")(query, key)
    weights = Compute(lambda x: tf.nn.softmax(x * 1e-3), "softmax")(scores)
    mixed = Compute(tf.matmul, "mix")(weights, value)
    return regressor(tokens, layers.GlobalAveragePooling1D(name="pool")(mixed), 0.003)


def large_tokens() -> Data:
    data = sequences()
    return Data(data.x * 150, data.y)


CASES = (
    Case(
        "mask_1e9",
        "-1e9 is minus infinity in float16: 0 * -Inf is NaN, and a row of nothing but -Inf has no softmax.",
        partial(masked_attention, -1e9),
        padded_sequences,
        truth=frozenset({"mask", "softmax"}),
        also_right=frozenset({"change_constant"}),
        repair={"make": partial(masked_attention, -3e4)},
        goes_nonfinite=True,
        source_layer="mask",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "attention_softmax",
        "The softmax of the attention takes exp of scores above 11.09, which is infinite in float16: Inf / Inf is NaN.",
        partial(naive_attention, naive_softmax),
        sequences,
        truth=frozenset({"softmax"}),
        repair={"make": partial(naive_attention, tf.nn.softmax)},
        goes_nonfinite=True,
        source_layer="softmax",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "attention_scores",
        "Queries times keys exceed 65,504, and the softmax casts what it reads back to float16.",
        large_scores,
        large_tokens,
        truth=frozenset({"scores", "softmax"}),
        goes_nonfinite=True,
        source_layer="scores",
        direction="forward",
        first_bad_step=0,
    ),
)
