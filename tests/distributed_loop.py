"""A custom training loop under a distribution strategy, for the processes that have several devices or workers.

Whoever imports this has made TensorFlow's devices, or its strategy of several workers, before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

import precscope
from tests.models import tape_step

if TYPE_CHECKING:
    from pathlib import Path

QUIET: dict[str, Any] = {"profile_steps": 0, "device_interval_s": 0.0, "reference": False}
BATCH = 16


def make_model(policy: str) -> Any:
    """Return a model whose BatchNormalization averages its variables over the replicas, in the middle of a step."""
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "relu", name="hidden"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(3, dtype="float32", name="head"),
        ]
    )


def make_loss() -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def on_one_device() -> Any:
    """Return the model as `precscope replay` wants it."""
    model = make_model("mixed_float16")
    model.compile("adam", make_loss())
    return model


def data(steps: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    return random.standard_normal((BATCH * steps, 6), np.float32), random.integers(0, 3, BATCH * steps)


def weights_as_text(model: Any) -> list[str]:
    return [weight.tobytes().hex() for weight in model.get_weights()]


def train(strategy: Any, model: Any, optimizer: Any, steps: int, run: Path | None, **options: Any) -> list[str]:
    """Train with a loop of its own, profiled where there is a `run`; return losses and weights as exact text."""
    replica_step = tape_step(model, optimizer, make_loss())
    by_data = tf.data.Options()
    by_data.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    batches = tf.data.Dataset.from_tensor_slices(data(steps)).batch(BATCH).with_options(by_data)

    @tf.function
    def train_step(inputs: Any, labels: Any) -> Any:
        return strategy.reduce("SUM", strategy.run(replica_step, args=(inputs, labels)), axis=None)

    def loop(step: Any, session: Any) -> list[str]:
        losses = []
        for inputs, labels in strategy.experimental_distribute_dataset(batches):
            losses.append(float(step(inputs, labels)))
            if session is not None:
                session.step(losses[-1])
        return [repr(losses), *weights_as_text(model)]

    if run is None:
        return loop(train_step, None)
    with precscope.profile(model, run, optimizer=optimizer, **(QUIET | options)) as session:
        return loop(session.instrument(train_step), session)
