"""How PrecScope's cost grows with the number of layers: a deep, narrow model in `fit`, every fifth step sampled.

    python -m benchmarks.many_layers                       # 250, 500, 1,000 layers, functional, without XLA
    python -m benchmarks.many_layers --form nested --xla --layers 1000
    python -m benchmarks.many_layers --layers 1000 --profile 30   # and the 30 functions that take most of the session

Layers are Dense and LayerNormalization in turn, with skip connections, 4 units wide: nothing is computed, so what is
timed is what each layer costs. A training without PrecScope comes first. Its `first step` is TensorFlow's own tracing
and compiling of the train function, the `probed` one that of PrecScope's second train function; the ratio is one to the
other. Times in seconds, where they do not say ms; CPU seconds hold on a machine that does other things, too.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cProfile
import platform
import pstats
import sys
import tempfile
import time
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

__all__ = ["deep_model", "measure"]

UNITS, BATCH = 4, 8
EVERY = 5


def deep_model(layers: int, form: str = "functional", xla: bool = False) -> Any:
    """Return a compiled model of so many layers beside its input and its head: "functional" or "nested"."""
    import keras

    # Keras walks a functional model from its output back to its input by recursion: four frames a layer.
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 10 * layers))
    keras.utils.set_random_seed(1)
    inputs = keras.Input((UNITS,))
    if form == "nested":
        body = _nested(layers // 2)
        x = body(inputs)
    else:
        x = inputs
        for number in range(layers // 2):
            x = _pair(number, x)
    model = keras.Model(inputs, keras.layers.Dense(1, dtype="float32", name="head")(x))
    model.compile("adam", "mse", jit_compile=xla)
    return model


def _pair(number: int, x: Any) -> Any:
    import keras

    y = keras.layers.Dense(UNITS, "tanh", name=f"dense_{number}")(x)
    return keras.layers.LayerNormalization(name=f"norm_{number}")(x + y)


def _nested(pairs: int) -> Any:
    """Return a subclassed layer that holds layers in layers, ten in each, down to one pair."""
    import keras

    class Pair(keras.layers.Layer):
        def __init__(self, **keywords: Any) -> None:
            super().__init__(**keywords)
            self.dense, self.norm = keras.layers.Dense(UNITS, "tanh"), keras.layers.LayerNormalization()

        def call(self, x: Any) -> Any:
            return self.norm(x + self.dense(x))

    class Group(keras.layers.Layer):
        def __init__(self, inside: int, **keywords: Any) -> None:
            super().__init__(**keywords)
            share, rest = divmod(inside, 10)
            sizes = [share + (number < rest) for number in range(10)] if inside > 10 else [1] * inside
            self.parts = [Group(size) if size > 1 else Pair() for size in sizes if size]

        def call(self, x: Any) -> Any:
            for part in self.parts:
                x = part(x)
            return x

    return Group(pairs, name="body")


class Times:
    """Keeps when each step ended, by the clock and by this process' CPU time; the first one began with `fit`."""

    def __init__(self) -> None:
        import keras

        ends = self.ends = [_now()]

        class Callback(keras.callbacks.Callback):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                ends.append(_now())

        self.callback = Callback()

    def steps(self) -> list[tuple[float, float]]:
        pairs = zip(self.ends, self.ends[1:], strict=False)
        return [(after[0] - before[0], after[1] - before[1]) for before, after in pairs]


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def measure(layers: int, form: str, xla: bool, steps: int, profile: int, folder: Path) -> dict[str, float]:
    """Train without PrecScope and with it, write report and page; return what took how long."""
    import keras
    import numpy as np

    import precscope

    keras.utils.clear_session()
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, BATCH * steps, UNITS)).astype(np.float32)
    found: dict[str, float] = {}
    run_dir = folder / f"{form}-{layers}-{xla}"
    for watched in (False, True):
        before = time.perf_counter()
        model = deep_model(layers, form, xla)
        found["build the model"] = time.perf_counter() - before
        profiler = cProfile.Profile()
        before = time.perf_counter()
        if watched and profile:
            profiler.enable()
        with precscope.profile(model, run_dir, every=EVERY, reference=False) if watched else nullcontext():
            found["enter the session"] = time.perf_counter() - before
            times = Times()
            model.fit(x, y[:, :1], batch_size=BATCH, verbose=0, shuffle=False, callbacks=[times.callback])
            before = time.perf_counter()
        profiler.disable()
        steps_of = times.steps()
        if not watched:
            found["plain: first step"], found["plain: first step, CPU s"] = steps_of[0]
            found["plain: step, ms"] = 1e3 * float(np.median([wall for wall, _ in steps_of[1:]]))
        else:
            found["leave the session"] = time.perf_counter() - before
            found["probed: first step"], found["probed: first step, CPU s"] = steps_of[1]
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(profile)
    return found | costs_of(run_dir) | readings_of(run_dir, folder / "page.html")


def costs_of(run_dir: Path) -> dict[str, float]:
    """Return what the run says that PrecScope cost, by part."""
    import precscope

    before = time.perf_counter()
    run = precscope.open_run(run_dir)
    run.scalars  # noqa: B018 - read what a report reads
    found = {"open the run": time.perf_counter() - before, "tensors": float(len(run.tensors))}
    by_kind = {cost.kind: cost for cost in run.costs}
    for kind in ("step", "read", "write"):
        cost = by_kind[kind]
        found[f"sample: {kind}, ms"] = cost.time_ns / max(cost.count, 1) / 1e6
    other = sum(cost.time_ns for cost in run.costs if cost.kind not in ("compile", "step", "read", "write"))
    found["everything else that a session costs"] = other / 1e9
    return found


def readings_of(run_dir: Path, page: Path) -> dict[str, float]:
    """Return how long the report in the terminal and the page take, each with a run read anew."""
    from precscope.cli import main as command

    found = {}
    for name, arguments in (("report", []), ("page", ["--html", str(page), "--force"])):
        before = time.perf_counter()
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            command(["report", str(run_dir), *arguments])
        found[name] = time.perf_counter() - before
    found["page, MB"] = page.stat().st_size / 1e6
    found["run directory, MB"] = sum(file.stat().st_size for file in run_dir.rglob("*")) / 1e6
    return found


@click.command()
@click.option("--layers", multiple=True, type=int, default=(250, 500, 1000), show_default=True)
@click.option("--form", type=click.Choice(["functional", "nested"]), default="functional", show_default=True)
@click.option("--xla", is_flag=True, help="Compile the train step with XLA.")
@click.option("--steps", default=31, show_default=True)
@click.option("--profile", default=0, metavar="N", help="Print the N functions that take most of the session.")
def main(layers: tuple[int, ...], form: str, xla: bool, steps: int, profile: int) -> None:
    """Print a table with a column for each number of layers."""
    import keras
    import tensorflow as tf

    from benchmarks.polling import device_name

    with tempfile.TemporaryDirectory() as folder:
        columns = [measure(count, form, xla, steps, profile, Path(folder)) for count in layers]
    title = f"{form}, {'XLA' if xla else 'no XLA'}: {device_name(tf)}, TensorFlow {tf.__version__}, "
    table = Table("layers", *(f"{count:,}" for count in layers), title=f"{title}Keras {keras.__version__}")
    for column in columns:
        pair = ("probed: first step, CPU s", "plain: first step, CPU s")
        column["first step: ratio of CPU s"] = column[pair[0]] / column[pair[1]]
    for name in columns[0]:
        table.add_row(name, *(f"{column[name]:,.2f}" for column in columns))
    Console(width=120).print(table)
    print(f"Python {platform.python_version()}, {steps} steps of {BATCH} examples, every {EVERY}th sampled")


if __name__ == "__main__":
    main()
