"""An LSTM on sequences of 100 uniform random values, which learns the mean of the last ten."""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras
import numpy as np

from precscope.probes.demos import DemoData
from precscope.probes.demos.building import batches, compile_in, global_policy

if TYPE_CHECKING:
    import tensorflow as tf
    from numpy.typing import NDArray

__all__ = ["BATCH_SIZE", "VALIDATION_SPLIT", "build", "build_for_bench", "load_data"]

BATCH_SIZE = 32
VALIDATION_SPLIT = 0.1

_LENGTH, _LAST = 100, 10
_UNITS = 128
_TRAIN, _TEST, _EPOCHS = 2048, 512, 4
_SEED = 0


def build(policy: str = "mixed_float16", units: int = _UNITS) -> keras.Model:
    """Return the compiled model in the dtype policy called `policy`: LSTM, and a Dense head in float32.

    Args:
        policy: Name of the dtype policy.
        units: Width of the LSTM.
    """
    with global_policy(policy):
        layers = [
            keras.Input((_LENGTH, 1)),
            keras.layers.LSTM(units, name="lstm"),
            keras.layers.Dense(1, dtype="float32", name="head"),
        ]
        return compile_in(policy, keras.Sequential(layers, name="lstm_mean"), loss="mean_squared_error")


def load_data() -> DemoData:
    """Return sequences of random values, made anew and always the same, and what is to be learned of each."""
    x, y = _sequences(_TRAIN + _TEST)
    description = (
        f"{_TRAIN:,} sequences of {_LENGTH} random values, uniform in [0, 1), to train on and {_TEST:,} to test on. "
        f"The target is the mean of the last {_LAST}, in standard deviations from 0.5: guessing gives an error of 1."
    )
    return DemoData(description, x[:_TRAIN], y[:_TRAIN], x[_TRAIN:], y[_TRAIN:], _EPOCHS)


def build_for_bench(batch_size: int = BATCH_SIZE) -> tuple[keras.Model, tf.data.Dataset]:
    """Return the compiled model in Keras' global dtype policy, and eight batches of sequences."""
    x, y = _sequences(8 * batch_size)
    return build(keras.config.dtype_policy().name), batches(x, y, batch_size)


def _sequences(count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    x = np.random.default_rng(_SEED).random((count, _LENGTH, 1), np.float32)
    deviation = np.sqrt(1 / 12 / _LAST)  # of the mean of so many uniform values
    y = (x[:, -_LAST:].mean(axis=1) - 0.5) / deviation
    return x, y.astype(np.float32)
