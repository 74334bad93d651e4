"""Whether cuDNN's recurrent layers write all that is read of them: one call after filling free memory with a value.

    python -m benchmarks.cudnn_rnn --out cudnn_rnn.jsonl         # on a GPU, a minute

TensorFlow's allocator hands out memory as the last owner left it. A kernel that writes all that it reads gives the same
whatever lay there. Here an LSTM or a GRU goes forward and backward, after free memory was filled with a value; outputs
and gradients are compared with those of the same layer without cuDNN (`use_cudnn=False`) in float32.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click

CELLS = ("LSTM", "GRU")
DTYPES = ("float32", "float16", "bfloat16")
FILLINGS = {"zeros": 0.0, "1e30": 1e30, "NaN": float("nan")}
#: Units, features and time steps; the last is the project's own LSTM example.
SIZES = ((4, 3, 5), (16, 3, 5), (64, 64, 20), (128, 1, 100))
_BATCH = 32
_MOST_ELEMENTS = 2**22
_TENSORS = 24  # of each size, so that the allocator's bins are all filled


def fill_free_memory(value: float) -> None:
    """Allocate tensors of many sizes, fill them, and let them go."""
    import tensorflow as tf

    sizes = [4**power for power in range(3, 12) if 4**power <= _MOST_ELEMENTS]
    held = [tf.fill([size], tf.constant(value, tf.float32)) for size in sizes for _ in range(_TENSORS)]
    held[-1].numpy()


def outcome(cell: str, dtype: str, size: tuple[int, int, int], use_cudnn: bool, filling: float) -> dict[str, Any]:
    """Return output and gradients of a layer that always begins alike, as float64 arrays by name."""
    import keras
    import numpy as np
    import tensorflow as tf

    units, features, steps = size
    keras.utils.set_random_seed(0)
    policy = dtype if dtype == "float32" else f"mixed_{dtype}"
    layer = getattr(keras.layers, cell)(units, use_cudnn=use_cudnn, return_sequences=True, dtype=policy)
    layer.build((_BATCH, steps, features))
    x = tf.constant(np.random.default_rng(0).normal(size=(_BATCH, steps, features)), tf.float32)
    x = tf.cast(x, layer.compute_dtype)
    fill_free_memory(filling)
    with tf.GradientTape() as tape:
        tape.watch(x)
        output = layer(x)
        loss = tf.reduce_sum(tf.square(tf.cast(output, tf.float32)))
    variables = [variable.value for variable in layer.trainable_variables]
    gradients = tape.gradient(loss, [x, *variables])
    names = ("output", "input gradient", *(f"{variable.name} gradient" for variable in layer.trainable_variables))
    return {name: tf.cast(value, tf.float64).numpy() for name, value in zip(names, [output, *gradients], strict=True)}


def compare(cell: str, dtype: str, size: tuple[int, int, int], times: int) -> dict[str, Any]:
    """Return, for each filling, what was not finite and how far the rest is from float32 without cuDNN."""
    import numpy as np

    expected = outcome(cell, "float32", size, use_cudnn=False, filling=0.0)
    record: dict[str, Any] = {"cell": cell, "dtype": dtype, "units": size[0], "features": size[1], "steps": size[2]}
    for name, value in FILLINGS.items():
        not_finite: dict[str, int] = {}
        worst = 0.0
        for _ in range(times):
            for what, array in outcome(cell, dtype, size, use_cudnn=True, filling=value).items():
                if np.all(np.isfinite(array)):
                    error = np.linalg.norm(array - expected[what]) / np.linalg.norm(expected[what])
                    worst = max(worst, float(error))
                else:
                    not_finite[what] = not_finite.get(what, 0) + 1
        record[name] = {"not finite, times": not_finite, "relative error of the rest": worst}
    return record


def show(record: dict[str, Any], times: int) -> None:
    """Print a record as one line for each filling."""
    title = f"{record['cell']} {record['dtype']}, {record['units']} units, {record['steps']} steps"
    for name in FILLINGS:
        found = record[name]
        bad = ", ".join(f"{what} {count} of {times}" for what, count in found["not finite, times"].items())
        rest = f"error {found['relative error of the rest']:.2g}"
        print(f"{title}: memory of {name}: not finite: {bad or 'nothing'}; {rest}", flush=True)


@click.command()
@click.option("--times", default=5, show_default=True, help="Calls of each setting.")
@click.option("--out", type=click.Path(path_type=Path), help="Append records to this file of JSON lines.")
def main(times: int, out: Path | None) -> None:
    """Measure every cell, dtype and size."""
    import keras
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        raise click.ClickException("cuDNN needs a GPU, and TensorFlow sees none here.")
    versions = f"TensorFlow {tf.__version__}, Keras {keras.__version__}, Python {platform.python_version()}"
    for cell, dtype, size in itertools.product(CELLS, DTYPES, SIZES):
        record = compare(cell, dtype, size, times) | {"versions": versions, "times": times}
        show(record, times)
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
