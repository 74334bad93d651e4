"""What the tripwire costs: a plain `fit`, and one under a session with nothing but the poll and the tripwire.

    python -m benchmarks.tripwire                           # batch 32 of the MLP, the worst case: its steps are short
    python -m benchmarks.tripwire --width 4096 --batch 512  # a model whose step is long against what a launch takes
    python -m benchmarks.tripwire --steps 200 --rounds 3    # a rehearsal

A round trains the same steps four times, without, with, with, without, or the reverse in every second round. Beside the
ratio stands the noise, of one training without to the other one without. Setting the wire, once a session, is not
timed. On a GPU the allocator's peak is printed, too.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import platform
import statistics
import tempfile
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from benchmarks.polling import ONLY_POLL, device_name, known, quartiles

__all__ = ["Trainer"]


class Trainer:
    """A multilayer perceptron on one repeated batch; no input pipeline takes part."""

    def __init__(self, batch: int, width: int, steps: int) -> None:
        import keras
        import tensorflow as tf

        keras.mixed_precision.set_global_policy("mixed_bfloat16")
        keras.utils.set_random_seed(0)
        layers = keras.layers
        hidden = [layers.Dense(width, activation="relu") for _ in range(1 if width == 128 else 4)]
        self.model = keras.Sequential([keras.Input((784,)), *hidden, layers.Dense(10, dtype="float32")])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile("adam", loss, jit_compile=True)
        x = tf.random.stateless_uniform((batch, 784), [1, 2])
        y = tf.random.stateless_uniform((batch,), [3, 4], 0, 10, tf.int32)
        options = tf.data.Options()
        options.autotune.enabled = False  # its thread can miss that an iterator goes, which then takes a second
        self.data = tf.data.Dataset.from_tensors((x, y)).repeat().prefetch(4).with_options(options)
        self.steps, self.tf = steps, tf
        self.gpu = bool(tf.config.list_physical_devices("GPU"))

    def train(self, tripwire: bool) -> tuple[float, int | None]:
        """Train once; return seconds, entering and leaving the session not timed, and the allocator's peak."""
        import precscope

        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            if tripwire:
                options = known(ONLY_POLL | {"tripwire": True})
                stack.enter_context(precscope.profile(self.model, Path(folder) / "run", **options))
            if self.gpu:
                self.tf.config.experimental.reset_memory_stats("GPU:0")
            self.model.fit(self.data, steps_per_epoch=3, epochs=1, verbose=0)  # the wire is set, its copy traced
            start = time.perf_counter()
            self.model.fit(self.data, steps_per_epoch=self.steps, epochs=1, verbose=0)
            self.model.optimizer.iterations.numpy()
            seconds = time.perf_counter() - start
            peak = self.tf.config.experimental.get_memory_info("GPU:0")["peak"] if self.gpu else None
        return seconds, peak


@click.command()
@click.option("--batch", default=32, show_default=True)
@click.option("--width", default=128, show_default=True, help="Units of the hidden layer; of four, unless 128.")
@click.option("--steps", default=1000, show_default=True, help="Steps of one training; a round makes four.")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(min=2))
def main(batch: int, width: int, steps: int, rounds: int) -> None:
    """Print the ratios' medians and quartiles."""
    import keras
    import tensorflow as tf

    warnings.filterwarnings("ignore", message="PrecScope: nothing was recorded")  # as it is meant to be
    trainer = Trainer(batch, width, steps)
    for tripwire in (False, True):  # compiles
        trainer.train(tripwire)
    ratios, noise, plain_ms, peaks = [], [], [], dict[bool, Any]()
    for number in range(rounds):
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for tripwire in (False, True, True, False) if number % 2 == 0 else (True, False, False, True):
            taken, peaks[tripwire] = trainer.train(tripwire)
            seconds[tripwire].append(taken)
        ratios.append(sum(seconds[True]) / sum(seconds[False]))
        noise.append(seconds[False][1] / seconds[False][0])
        plain_ms.append(1e3 * sum(seconds[False]) / (2 * steps))
    print(f"{device_name(tf)}; TensorFlow {tf.__version__}, Keras {keras.__version__}, Python", end=" ")
    print(f"{platform.python_version()}; width {width}, batch {batch}, {rounds} rounds of 4 x {steps} steps")
    plain = statistics.median(plain_ms)
    print(f"plain step: {plain:.3f} ms; the tripwire adds {plain * (statistics.median(ratios) - 1):.3f} ms a step")
    print(f"with the tripwire, to without: {quartiles(ratios)}")
    print(f"without, to without:           {quartiles(noise)}")
    if peaks[True] is not None:
        print(f"allocator's peak: {peaks[False] / 2**20:.1f} MiB without, {peaks[True] / 2**20:.1f} MiB with it")


if __name__ == "__main__":
    main()
