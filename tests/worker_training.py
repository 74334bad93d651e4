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

STEPS = 12


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

    from tests import distributed_loop  # the strategy comes first

    with strategy.scope():
        model = distributed_loop.make_model("mixed_float16")
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
        optimizer.build(model.trainable_variables)
    return distributed_loop.train(strategy, model, optimizer, STEPS, run, **options)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2].split(","), Path(sys.argv[3]))
