"""Whole numbers beyond 2,048, which float16 cannot tell apart."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.zoo.case import Case, Data
from tests.zoo.parts import Compute, noisy, random, regressor

__all__ = ["CASES"]

layers = keras.layers
_TABLE = random(7).standard_normal((8000, 8)).astype(np.float32)


class Positions(keras.layers.Layer):
    """Sines and cosines of positions, computed in the layer's own dtype."""

    def call(self, positions: Any) -> Any:
        angles = tf.cast(positions, self.compute_dtype) * tf.constant([1.0, 0.5, 0.25], self.compute_dtype)
        return tf.concat([tf.sin(angles), tf.cos(angles)], -1)


def positional_encoding() -> Any:
    positions = keras.Input((1,), dtype="int32", name="positions")
    encoding = Positions(name="encoding")(positions)
    return regressor(positions, layers.Dense(16, "tanh", name="hidden")(encoding))


def positions_up_to_8191() -> Data:
    positions = random(0).integers(0, 8192, (512, 1)).astype(np.int32)
    return Data(positions, noisy(np.sin(positions) + np.cos(0.5 * positions), 1))


def table_lookup() -> Any:
    """Ids come as numbers, as where a pipeline stacks all columns into one float array."""
    ids = keras.Input((4,), name="ids")
    rows = Compute(lambda ids: tf.gather(tf.cast(_TABLE, ids.dtype), tf.cast(ids, tf.int32)), "lookup")(ids)
    return regressor(ids, layers.Flatten(name="flatten")(rows))


def ids_up_to_7999() -> Data:
    ids = random(0).integers(0, 8000, (512, 4))
    target = _TABLE[ids].reshape(512, -1) @ random(1).standard_normal((32, 1))
    return Data(ids.astype(np.float32), noisy(target, 2))


CASES = (
    Case(
        "positions_8192",
        "Positions are cast to float16, which steps by 2 from 2,048 on and by 4 from 4,096 on. Silent.",
        positional_encoding,
        positions_up_to_8191,
        truth=frozenset({"encoding"}),
    ),
    Case(
        "ids_as_numbers",
        "Ids are cast to float16 on their way into the layer that looks them up, so that neighbours collide. Silent.",
        table_lookup,
        ids_up_to_7999,
        truth=frozenset({"lookup"}),
    ),
)
