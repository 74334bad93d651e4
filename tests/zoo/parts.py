"""What the models of the zoo are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from tests.zoo.case import Data

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Compute", "compiled", "linear_target", "many_rows", "noisy", "random", "regressor", "standard_rows"]


class Compute(keras.layers.Layer):
    """Applies a function of TensorFlow in the layer's own compute dtype."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        super().__init__(name=name)
        self.function = function

    def call(self, *inputs: Any) -> Any:
        return self.function(*inputs)


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def noisy(target: np.ndarray, seed: int, noise: float = 0.3) -> np.ndarray:
    """`target` with noise, so that the loss ends at its variance and not near 0, where ratios mean little."""
    target = (target - target.mean()) / target.std()
    return (target + noise * random(seed).standard_normal(target.shape)).astype(np.float32)


def compiled(model: Any, loss: Any = "mse", optimizer: Any = None, **options: Any) -> Any:
    """Compile as Keras would by itself: under a global mixed_float16 the optimizer is given a dynamic loss scale."""
    model.compile(optimizer or keras.optimizers.Adam(0.01), loss, jit_compile=False, **options)
    return model


def regressor(inputs: Any, features: Any, learning_rate: float = 0.01) -> Any:
    """A model with a float32 head that puts out one number."""
    outputs = keras.layers.Dense(1, dtype="float32", name="head")(features)
    return compiled(keras.Model(inputs, outputs), optimizer=keras.optimizers.Adam(learning_rate))


def linear_target(x: np.ndarray, seed: int) -> np.ndarray:
    """A non-linear function of all features: float [rows, 1]."""
    flat = x.reshape(len(x), -1)
    weights = random(seed).standard_normal((flat.shape[1], 2)) / np.sqrt(flat.shape[1])
    hidden = flat @ weights
    return np.tanh(hidden[:, :1]) + 0.5 * hidden[:, 1:]


def many_rows() -> Data:
    """As many as 200 steps take, so that none is seen twice and its noise cannot be learnt by heart."""
    return standard_rows(200 * 64)


def standard_rows(rows: int = 512, features: int = 16, seed: int = 0) -> Data:
    """Standard normal features and a noisy target."""
    x = random(seed).standard_normal((rows, features)).astype(np.float32)
    return Data(x, noisy(linear_target(x, seed + 1), seed + 2))
