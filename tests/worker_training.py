"""One worker of a training on several, in a process of its own: `python -m tests.worker_training NUMBER PORTS FOLDER`.

It trains with a loop of its own under MultiWorkerMirroredStrategy, without PrecScope and with it, and prints as JSON
what the test compares.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

QUIET: dict[str, Any] = {"profile_steps": 0, "device_interval_s": 0.0, "reference": False}
BATCH, STEPS = 16, 12


def main(number: int, ports: list[str], folder: Path) -> None:
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": number}})
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    results = {"plain": train(strategy, None, {})}
    # Each worker samples at steps of its own.
    results["profiled"] = train(strategy, folder / "run", {"every": (4, 3)[number]})
    print(json.dumps(results), flush=True)


def train(strategy: Any, run: Path | None, options: dict[str, Any]) -> list[str]:
    import keras
    import tensorflow as tf

    import precscope

    keras.config.set_dtype_policy("mixed_float16")
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(8, "relu", name="hidden"),
                keras.layers.BatchNormalization(name="norm"),
                keras.layers.Dense(3, dtype="float32", name="head"),
            ]
        )
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
        optimizer.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    random = np.random.default_rng(3)
    x, y = random.standard_normal((BATCH * STEPS, 6), np.float32), random.integers(0, 3, BATCH * STEPS)
    options_of_data = tf.data.Options()
    options_of_data.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH).with_options(options_of_data)

    def replica_step(inputs: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(inputs, training=True))
            scaled = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    @tf.function
    def train_step(inputs: Any, labels: Any) -> Any:
        return strategy.reduce("SUM", strategy.run(replica_step, args=(inputs, labels)), axis=None)

    def loop(step: Any, session: Any) -> list[str]:
        losses = []
        for inputs, labels in strategy.experimental_distribute_dataset(batches):
            losses.append(float(step(inputs, labels)))
            if session is not None:
                session.step(losses[-1])
        return [repr(losses), *(weight.tobytes().hex() for weight in model.get_weights())]

    if run is None:
        return loop(train_step, None)
    with precscope.profile(model, run, optimizer=optimizer, **QUIET, **options) as session:
        return loop(session.instrument(train_step), session)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2].split(","), Path(sys.argv[3]))
