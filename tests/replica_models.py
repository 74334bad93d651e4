"""What is trained on several devices, for trainings there and for those that run a step again on one."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

BATCH, STEPS = 16, 8


def make_model(policy: str, optimizer: str = "adam") -> Any:
    """Return a model whose BatchNormalization averages its variables over the replicas, in the middle of a step."""
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "relu", name="hidden"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(3, dtype="float32", name="head"),
        ]
    )
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def data() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    return random.standard_normal((BATCH * STEPS, 6), np.float32), random.integers(0, 3, BATCH * STEPS)


def on_one_device() -> Any:
    """Return the model as `precscope replay` wants it."""
    return make_model("mixed_float16")
