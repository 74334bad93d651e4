"""How long the proof by replay takes for ResNet-50, phase by phase, and what it says.

    python -m benchmarks.verify_resnet50 --out verify_resnet50.jsonl       # on a GPU, compiled by XLA: minutes
    python -m benchmarks.verify_resnet50 --fault range                     # with something to be found
    python -m benchmarks.verify_resnet50 --small --no-xla                  # 32x32, batch 4: a rehearsal on a CPU

keras.applications.ResNet50, its softmax in float32, is trained for some steps under `precscope.profile`, which keeps
batches with their weights; then `session.verify()` is timed. The data are eight batches of random images. With
`--fault range` the images are large, squared by a layer in front and scaled down again by another, as in
`precscope demo mnist --fault range`: nothing is needed in the one case, both layers together in the other.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click

if TYPE_CHECKING:
    from precscope.verification import Verification

FAULTS = ("none", "range")
_BATCHES = 8
_LARGEST = 1020.0  # of a pixel; its square is a million


def build(fault: str, side: int, xla: bool) -> Any:
    """Return ResNet-50 as Keras has it, compiled, in Keras' global dtype policy."""
    import keras

    from precscope.probes.demos.mnist_faults import Square

    images = x = keras.Input((side, side, 3), name="images")
    if fault == "range":
        x = keras.layers.Rescaling(1 / _LARGEST**2, name="rescale")(Square(name="square")(x))
    body = keras.applications.ResNet50(weights=None, include_top=False, pooling="avg", input_tensor=x)
    logits = keras.layers.Dense(1000, name="logits")(body.output)
    softmax = keras.layers.Activation("softmax", dtype="float32", name="softmax")(logits)
    model = keras.Model(images, softmax, name="resnet50")
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    model.compile(keras.optimizers.LossScaleOptimizer(optimizer), "sparse_categorical_crossentropy", jit_compile=xla)
    return model


def random_images(batch_size: int, side: int, largest: float) -> Any:
    """Return some batches again and again."""
    import tensorflow as tf

    def batch(number: Any) -> Any:
        x = largest * tf.random.stateless_uniform((batch_size, side, side, 3), [1, number])
        return x, tf.random.stateless_uniform((batch_size,), [2, number], 0, 1000, tf.int32)

    return tf.data.Dataset.range(_BATCHES).map(batch).cache().repeat().prefetch(2)


def measure(
    fault: str, policy: str, steps: int, batch_size: int, side: int, xla: bool, options: dict[str, Any]
) -> dict[str, Any]:
    """Train, verify, print what was found, and return the figures."""
    import keras

    import precscope

    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    model, data = build(fault, side, xla), random_images(batch_size, side, _LARGEST if fault == "range" else 1.0)
    recording: dict[str, Any] = {"every": 10, "keep_batches_mib": 1024.0, "reference": False}
    recording |= {"profile_steps": 0, "device_interval_s": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        began_s = time.perf_counter()
        with precscope.profile(model, Path(folder) / "run", **recording) as session:
            model.fit(data, steps_per_epoch=steps, epochs=1, verbose=0)
        trained_s = time.perf_counter()
        print(f"Trained {steps} steps in {trained_s - began_s:.1f} s, compiling included.", flush=True)
        verification = session.verify(**options, report=lambda done, left: tell(trained_s, done, left))
        verified_s = time.perf_counter() - trained_s
    show(verification, verified_s)
    return {
        "fault": fault,
        "policy": policy,
        "batch": batch_size,
        "side": side,
        "steps": steps,
        "xla": xla,
        "options": options,
        "versions": versions(),
        "trained_s": trained_s - began_s,
        "verified_s": verified_s,
        **{name: getattr(verification, name) for name in ("proven", "is_minimal", "pins", "suspects", "trials")},
        "device": verification.device,
        "took_s": dict(verification.took_s),
        "traces": verification.traces,
        "tracing_s": verification.tracing_s,
        "before": asdict(verification.before.worst),
        "after": None if verification.after is None else asdict(verification.after.worst),
        "prices": {name: asdict(price) for name, price in verification.prices.items()},
        "pin_prices": {name: asdict(price) for name, price in verification.pin_prices.items()},
    }


def tell(began_s: float, done: int, left: int) -> None:
    """Say how far the search is."""
    print(f"{time.perf_counter() - began_s:6.1f} s: {done} sets tried, at most {left} left", flush=True)


def show(verification: Verification, verified_s: float) -> None:
    """Print the outcome as `precscope verify` does, then where the time went."""
    from precscope.reports.terminal_proof import print_proof

    print_proof(verification)
    traces = f"{verification.traces} traces of the step, {verification.trials} sets of layers"
    print(f"\nVerified in {verified_s:.1f} s, {traces}:")
    for phase, seconds in verification.took_s.items():
        print(f"  {phase:<28}{seconds:8.1f} s")
    print(f"  tracing, of all that        {verification.tracing_s or 0:8.1f} s")


def versions() -> str:
    import keras
    import tensorflow as tf

    return f"TensorFlow {tf.__version__}, Keras {keras.__version__}, Python {platform.python_version()}"


@click.command()
@click.option("--fault", type=click.Choice(FAULTS), default="none", show_default=True, help="What is wrong with it.")
@click.option("--policy", default="mixed_float16", show_default=True, help="dtype policy of the training.")
@click.option("--steps", default=40, show_default=True, help="Train steps before the proof.")
@click.option("--batch", "batch_size", default=128, show_default=True, help="Images in a batch.")
@click.option("--most-batches", default=3, show_default=True, help="Batches to replay.")
@click.option("--most-sets", default=60, show_default=True, help="Sets of layers to try at most.")
@click.option("--most-minutes", type=float, help="Try no further set after so many minutes.")
@click.option("--xla/--no-xla", default=True, show_default=True, help="Whether XLA compiles the training.")
@click.option("--small", is_flag=True, help="32x32, batch 4: a rehearsal.")
@click.option("--out", type=click.Path(path_type=Path), help="Append the record to this file of JSON lines.")
def main(
    fault: str,
    policy: str,
    steps: int,
    batch_size: int,
    most_batches: int,
    most_sets: int,
    most_minutes: float | None,
    xla: bool,
    small: bool,
    out: Path | None,
) -> None:
    """Measure the proof of ResNet-50."""
    batch_size, side = (4, 32) if small else (batch_size, 224)
    options = {
        "most_batches": most_batches,
        "most_tests": most_sets,
        "most_s": None if most_minutes is None else 60 * most_minutes,
    }
    record = measure(fault, policy, steps, batch_size, side, xla, options)
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
