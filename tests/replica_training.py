"""Trainings on two logical CPU devices, in a process of its own: TensorFlow makes devices once, when it starts.

`python -m tests.replica_training FOLDER` writes runs into FOLDER and prints, as JSON, what the tests compare.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

TWO = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], TWO)

import keras  # noqa: E402  # the devices come first

import precscope  # noqa: E402
from tests import distributed_loop  # noqa: E402
from tests.distributed_loop import BATCH, QUIET, make_loss, make_model, weights_as_text  # noqa: E402

STEPS = 8
EXTRAS: dict[str, Any] = {"keep_batches_mib": 4.0, "reference": True, "tripwire": True}


def compiled_model(policy: str) -> Any:
    model = make_model(policy)
    model.compile("adam", make_loss())
    return model


def fit(strategy: Any, run: Path | None, policy: str = "mixed_float16", **options: Any) -> list[str]:
    """Train, and return loss and weights as exact text."""
    x, y = distributed_loop.data(STEPS)
    with strategy.scope():
        model = compiled_model(policy)
    arguments: dict[str, Any] = {"batch_size": BATCH, "epochs": 2, "shuffle": False, "verbose": 0}
    if run is None:
        history = model.fit(x, y, **arguments)
    else:
        with precscope.profile(model, run, **(QUIET | options)):
            history = model.fit(x, y, **arguments)
    assert not any("call" in vars(layer) for layer in model.layers)
    return [repr(history.history["loss"]), *weights_as_text(model)]


def overflow_on_one(strategy: Any, run: Path) -> dict[str, Any]:
    """Train a good step, and one in which the second half of the batch, that of replica 1, leaves float16's range."""
    x, y = distributed_loop.data(STEPS)
    with strategy.scope():
        model = compiled_model("mixed_float16")
    x[BATCH + BATCH // 2 :] *= np.float32(1e30)
    with precscope.profile(model, run, every=1, dense_steps=0, **QUIET):
        model.fit(x[: 2 * BATCH], y[: 2 * BATCH], batch_size=BATCH, shuffle=False, verbose=0)
    return {"finite": all(bool(np.isfinite(weight).all()) for weight in model.get_weights())}


def kept(strategy: Any, folder: Path) -> dict[str, Any]:
    """Keep batches, take reference steps and set the tripwire; return what the training gave, and what it saw."""
    result = fit(strategy, folder / "kept", every=3, **EXTRAS)
    run = precscope.open_run(folder / "kept")
    return {"trained": result, "notices": [notice.message for notice in run.notices]}


def trip(strategy: Any, run: Path) -> dict[str, Any]:
    """Let the second half of the third batch, that of replica 1, leave float16's range, with nothing sampled."""
    x, y = distributed_loop.data(STEPS)
    with strategy.scope():
        model = compiled_model("mixed_float16")
    x[2 * BATCH + BATCH // 2 : 3 * BATCH] *= np.float32(1e30)
    with precscope.profile(model, run, every=1, start=10_000, tripwire=True, **QUIET):
        model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    return {}


def known_step(strategy: Any, run: Path) -> dict[str, Any]:
    """Sample one step whose numbers the test computes itself, in float32 without BatchNormalization."""
    keras.config.set_dtype_policy("float32")
    x = np.array([[1, 2], [3, 4], [-5, 6], [7, 80]], np.float32)
    with strategy.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False, name="sum")])
        model.compile(keras.optimizers.SGD(0.0), "mse")
        model.set_weights([np.ones((2, 1), np.float32)])
    with precscope.profile(model, run, every=1, **QUIET):
        model.fit(np.tile(x, (2, 1)), np.zeros((8, 1), np.float32), batch_size=4, shuffle=False, verbose=0)
    return {}


def custom_loop(strategy: Any, run: Path | None) -> list[str]:
    with strategy.scope():
        model = compiled_model("mixed_float16")
        model.optimizer.build(model.trainable_variables)
    return distributed_loop.train(strategy, model, model.optimizer, STEPS, run, every=3, **EXTRAS)


def main(folder: Path) -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = {
            "plain": fit(strategy, None),
            "never due": fit(strategy, folder / "never", every=1, start=10_000),
            "sampled": fit(strategy, folder / "sampled", every=3),
            "known": known_step(strategy, folder / "known"),
            "overflow": overflow_on_one(strategy, folder / "overflow"),
            "kept": kept(strategy, folder),
            "trip": trip(strategy, folder / "trip"),
            "loop plain": custom_loop(strategy, None),
            "loop": custom_loop(strategy, folder / "loop"),
        }
    words = sorted({str(item.message) for item in caught if str(item.message).startswith("PrecScope")})
    print(json.dumps({"results": results, "warnings": words}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
