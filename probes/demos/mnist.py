"""The MNIST multilayer perceptron: Flatten, Dense 128 (ReLU), Dropout 0.2, Dense 10 (softmax)."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import keras
import numpy as np

from precscope.probes.demos import DemoData
from precscope.probes.demos.building import batches, compile_in, global_policy
from precscope.probes.demos.digits import load_digits

if TYPE_CHECKING:
    from collections.abc import Iterator

    import tensorflow as tf
    from numpy.typing import NDArray

__all__ = ["BATCH_SIZE", "VALIDATION_SPLIT", "build", "build_for_bench", "load_data"]

BATCH_SIZE = 32
VALIDATION_SPLIT = 0.1

_DIGITS_FOR_TEST = 297  # the last ones; 1,500 are left to train on
_NETWORK_TIMEOUT_S = 5.0


def build(policy: str = "mixed_float16") -> keras.Model:
    """Return the compiled model in the dtype policy called `policy`.

    float16 gets Adam in a dynamic LossScaleOptimizer. The softmax head stays in the policy's dtype, which a careful
    user would not do: what that costs is for the report to show.
    """
    with global_policy(policy):
        model = keras.Sequential(
            [
                keras.Input((28, 28)),
                keras.layers.Flatten(),
                keras.layers.Dense(128, activation="relu"),
                keras.layers.Dropout(0.2),
                keras.layers.Dense(10, activation="softmax"),
            ],
            name="mnist_mlp",
        )
        return compile_in(policy, model, loss="sparse_categorical_crossentropy", metrics=["accuracy"])


def load_data(network_timeout_s: float = _NETWORK_TIMEOUT_S) -> DemoData:
    """Return MNIST where it is cached or can be downloaded, otherwise the digits that come with PrecScope.

    Args:
        network_timeout_s: How long to wait for the network to answer, in seconds.
    """
    try:
        with _socket_timeout(network_timeout_s):
            (x, y), (x_test, y_test) = keras.datasets.mnist.load_data()
    except Exception as error:  # Keras raises a bare Exception where a download fails
        return _digits(reason=str(error))
    description = (
        f"MNIST, {len(x):,} images of 28x28 to train on and {len(x_test):,} to test on (keras.datasets.mnist)."
    )
    return DemoData(description, _unit(x), y, _unit(x_test), y_test, epochs=3)


def build_for_bench(batch_size: int = BATCH_SIZE) -> tuple[keras.Model, tf.data.Dataset]:
    """Return the compiled model in Keras' global dtype policy, and batches of the digits; no network is asked."""
    images, labels = load_digits()
    return build(keras.config.dtype_policy().name), batches(_unit(images), labels, batch_size)


def _digits(reason: str) -> DemoData:
    images, labels = load_digits()
    x, y = _unit(images), labels
    description = (
        f"{len(x):,} real handwritten digits, brought from 8x8 to 28x28 (UCI Optical Recognition of Handwritten "
        f"Digits, CC BY 4.0). Not MNIST, which was neither cached nor could be downloaded: {reason.rstrip('.')}."
    )
    split = len(x) - _DIGITS_FOR_TEST
    return DemoData(description, x[:split], y[:split], x[split:], y[split:], epochs=20)


def _unit(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bring pixels of 0..255 to 0..1."""
    return images.astype(np.float32) / np.float32(255)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Let no connection wait longer than `seconds`: Keras' download has no timeout of its own."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)
