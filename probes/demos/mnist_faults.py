"""The MNIST perceptron with one fault each, to be diagnosed, proven and repaired: `precscope demo mnist --fault NAME`.

Each is a thing that people do, and each trains well in float32.

head: a float16 softmax head whose weights begin large, a batch of 256, a tenth of the labels wrong. Where a label is
    wrong and the head is sure, its probability p is tiny, and the gradient loss scale / (256 p) overflows, step after
    step, until the loss scale has sunk to 1.
norm: a custom normalization of pixels in 0..255 that adds up squares and divides by their number: the sum is more than
    float16 can hold. Its output is 0, without a word, and nothing is learned. (`tf.reduce_mean` would do the same, but
    for XLA, which averages in float32.)
range: a layer that squares pixels beyond 255, and one that scales the squares down. Both have to compute in float32:
    the first alone hands its large output on to a layer that casts it back to float16.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from precscope.errors import OptionsError
from precscope.probes.demos import DemoData
from precscope.probes.demos.building import compile_in, global_policy
from precscope.probes.demos.digits import load_digits

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BATCH_SIZE",
    "FAULTS",
    "VALIDATION_SPLIT",
    "MeanSquareNorm",
    "Square",
    "build",
    "build_head",
    "build_norm",
    "build_range",
    "load_data",
]

BATCH_SIZE = 256
VALIDATION_SPLIT = 0.0

#: The faults by name, with what is wrong.
FAULTS = {
    "head": "a float16 softmax head that is sure of itself, and wrong labels",
    "norm": "a custom normalization that sums squares in float16",
    "range": "two layers between which values leave float16's range",
}

_DIGITS_FOR_TEST = 297
_EPOCHS = 20
_WRONG_LABELS = 0.1
_SEED = 0
_CONTRAST = 4  # the camera's gain, say: pixels reach 1,020, their squares a million


@keras.saving.register_keras_serializable("precscope_demo")
class MeanSquareNorm(keras.layers.Layer):
    """Divides each example by the root of its mean square, computed in whatever dtype the layer computes in."""

    def call(self, x: Any) -> Any:
        """Return `x`, [batch, features], normalized."""
        mean_square = tf.reduce_sum(x * x, axis=-1, keepdims=True) / x.shape[-1]
        return x * tf.math.rsqrt(mean_square + 1e-3)


@keras.saving.register_keras_serializable("precscope_demo")
class Square(keras.layers.Layer):
    """Squares its input."""

    def call(self, x: Any) -> Any:
        """Return the squares of `x`."""
        return keras.ops.square(x)


def build(policy: str = "mixed_float16", fault: str = "head") -> keras.Model:
    """Return the compiled model with a fault, in the dtype policy called `policy`.

    Raises:
        OptionsError: There is no such fault.
    """
    if fault not in FAULTS:
        raise OptionsError(f"Unknown fault {fault!r}. Expected one of: {', '.join(FAULTS)}.")
    sure = keras.initializers.RandomNormal(stddev=4.0, seed=3)
    with global_policy(policy):
        layers = [keras.Input((28, 28)), keras.layers.Flatten(name="flatten")]
        if fault == "norm":
            layers.append(MeanSquareNorm(name="norm"))
        if fault == "range":
            largest = float((_CONTRAST * 255) ** 2)
            layers += [Square(name="square"), keras.layers.Rescaling(1 / largest, name="rescale")]
        layers += [
            keras.layers.Dense(128, activation="relu", name="hidden"),
            keras.layers.Dropout(0.2, name="dropout"),
            keras.layers.Dense(
                10, activation="softmax", kernel_initializer=sure if fault == "head" else "glorot_uniform", name="head"
            ),
        ]
        model = keras.Sequential(layers, name=f"mnist_{fault}")
        return compile_in(policy, model, loss="sparse_categorical_crossentropy", metrics=["accuracy"])


#: What `precscope verify --model precscope.probes.demos.mnist_faults:build_head` calls.
build_head, build_norm, build_range = (partial(build, fault=fault) for fault in FAULTS)


def load_data(fault: str = "head") -> DemoData:
    """Return the real digits that come with PrecScope, as the fault wants them; no network is asked."""
    images, labels = load_digits()
    x = images.astype(np.float32) * {"head": np.float32(1 / 255), "norm": np.float32(1)}.get(
        fault, np.float32(_CONTRAST)
    )
    split = len(x) - _DIGITS_FOR_TEST
    y = _with_wrong_labels(labels[:split]) if fault == "head" else labels[:split]
    wrong = f" A tenth of the training labels is wrong ({_WRONG_LABELS:.0%})." if fault == "head" else ""
    description = (
        f"{split:,} real handwritten digits to train on and {_DIGITS_FOR_TEST} to test on, pixels in 0..{x.max():g} "
        f"(UCI Optical Recognition of Handwritten Digits, CC BY 4.0).{wrong} The fault: {FAULTS[fault]}."
    )
    return DemoData(description, x[:split], y, x[split:], labels[split:], epochs=_EPOCHS)


def _with_wrong_labels(labels: NDArray[Any]) -> NDArray[Any]:
    random = np.random.default_rng(_SEED)
    wrong = random.random(len(labels)) < _WRONG_LABELS
    return np.where(wrong, random.integers(0, 10, len(labels)), labels)
