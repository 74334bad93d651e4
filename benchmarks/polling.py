"""What following the loss scale costs: a plain `fit` without a session, and with one in which only the poll is active.

    python benchmarks/polling.py                       # on a GPU: batch 32 of the MLP, the worst case
    python benchmarks/polling.py --steps 200 --rounds 4    # a rehearsal

A round trains the same steps four times, in the order without, with, with, without, or the reverse in every second
round, so that a drift of the machine cancels. Three ratios are taken in each round: of the two trainings under a
session to the two without (the answer), of one training without to the other one without (the noise: nothing was
changed between them), and of the poll's own time, as the session accounts for it, to all of it. Polling costs nothing
measurable where the first ratio lies around 1 within the noise of the second.

A session's first looks lie close together (after 1, 3, 7, 15, ... steps), later ones half a second apart and more: the
rounds are short trainings, so they hold more looks for their length than a long one.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

#: No sample, no profiled window, no device, no reference step and nothing kept: what is left is the poll.
ONLY_POLL = {
    "start": 10**9,
    "profile_steps": 0,
    "device_interval_s": 0.0,
    "reference": False,
    "dense_steps": 0,
    "tripwire": False,
}


@dataclass(frozen=True)
class Training:
    """One `fit`: its seconds, and of one under a session how often the poll looked and what that took."""

    seconds: float
    looks: int = 0
    poll_s: float = 0.0


class Trainer:
    """The MLP in mixed_float16 on one repeated batch, so that no input pipeline takes part."""

    def __init__(self, batch: int, steps: int) -> None:
        import keras
        import tensorflow as tf

        keras.mixed_precision.set_global_policy("mixed_float16")
        keras.utils.set_random_seed(0)
        layers = keras.layers
        stack = [layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dropout(0.2)]
        self.model = keras.Sequential([keras.Input((28, 28)), *stack, layers.Dense(10, dtype="float32")])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile("adam", loss, jit_compile=True)
        x = tf.random.stateless_uniform((batch, 28, 28), [1, 2])
        y = tf.random.stateless_uniform((batch,), [3, 4], 0, 10, tf.int32)
        options = tf.data.Options()
        # Its autotuner's thread can miss that an iterator goes, which then takes a second; with or without PrecScope.
        options.autotune.enabled = False
        self.data = tf.data.Dataset.from_tensors((x, y)).repeat().prefetch(4).with_options(options)
        self.steps = steps

    def fit(self) -> float:
        """Train and return the seconds that took, the device included."""
        start = time.perf_counter()
        self.model.fit(self.data, steps_per_epoch=self.steps, epochs=1, verbose=0)
        self.model.optimizer.iterations.numpy()
        return time.perf_counter() - start

    def train(self, watched: bool) -> Training:
        """Train once, under a session where `watched`; entering and leaving it is not timed."""
        import precscope

        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            if not watched:
                return Training(self.fit())
            run_dir = Path(folder) / "run"
            stack.enter_context(precscope.profile(self.model, run_dir, **known(ONLY_POLL)))
            seconds = self.fit()
            stack.close()
            run = precscope.open_run(run_dir)
            assert not run.samples, "a sample was taken: this is to measure the poll alone"
            poll = next(cost for cost in run.costs if cost.kind == "poll")
            return Training(seconds, poll.count, poll.time_ns / 1e9)


def known(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that this version has."""
    from precscope.options import Options

    names = {field.name for field in fields(Options)}
    return {name: value for name, value in options.items() if name in names}


def measure(trainer: Trainer, rounds: int) -> list[dict[str, float]]:
    """Return, for each round, its ratios and the looks of one training under a session."""
    measured = []
    for number in range(rounds):
        order = (False, True, True, False) if number % 2 == 0 else (True, False, False, True)
        trainings = [(watched, trainer.train(watched)) for watched in order]
        plain = [training for watched, training in trainings if not watched]
        polled = [training for watched, training in trainings if watched]
        measured.append(
            {
                "ratio": sum(t.seconds for t in polled) / sum(t.seconds for t in plain),
                "noise": plain[1].seconds / plain[0].seconds,
                "poll_share": sum(t.poll_s for t in polled) / sum(t.seconds for t in polled),
                "looks": statistics.mean(t.looks for t in polled),
                "plain_step_ms": 1e3 * sum(t.seconds for t in plain) / (2 * trainer.steps),
            }
        )
        print(json.dumps(measured[-1]), flush=True)
    return measured


def quartiles(values: Sequence[float]) -> str:
    """Return the median, and the quartiles in brackets."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.4f} ({low:.4f} to {high:.4f})"


def device_name(tf: Any) -> str:
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name"))
    return f"CPU, {os.cpu_count()} cores"


@click.command()
@click.option("--batch", default=32, show_default=True)
@click.option("--steps", default=2000, show_default=True, help="Steps of one training; a round makes four.")
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(min=2))
def main(batch: int, steps: int, rounds: int) -> None:
    """Print the ratios of each round, then their medians and quartiles."""
    import keras
    import tensorflow as tf

    warnings.filterwarnings("ignore", message="PrecScope: nothing was recorded")  # as it is meant to be
    trainer = Trainer(batch, steps)
    trainer.fit()  # compiles
    trainer.train(True)
    trainer.fit()
    measured = measure(trainer, rounds)
    columns = {name: [record[name] for record in measured] for name in measured[0]}
    print(f"{device_name(tf)}; TensorFlow {tf.__version__}, Keras {keras.__version__}, Python", end=" ")
    print(f"{platform.python_version()}; MLP, batch {batch}, mixed_float16, {rounds} rounds of 4 x {steps} steps")
    print(f"plain step: {statistics.median(columns['plain_step_ms']):.3f} ms")
    print(f"with the poll, to without: {quartiles(columns['ratio'])}")
    print(f"without, to without:       {quartiles(columns['noise'])}")
    share, looks = statistics.median(columns["poll_share"]), statistics.median(columns["looks"])
    print(f"the poll's own account: {share:.4%} of the time, {looks:.0f} looks in a training")


if __name__ == "__main__":
    main()
