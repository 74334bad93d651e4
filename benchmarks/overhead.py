"""What PrecScope costs: a probed step against a plain one, compile time, peak memory, and the total under the budget.

    python benchmarks/overhead.py --case resnet50 --out overhead.jsonl
    python benchmarks/overhead.py --table overhead.jsonl          # the table in docs/benchmarks.md

Each case runs in one process: plain steps first, then trainings without PrecScope and under a session whose samples
never come due, in turns; then, for each selection of layers, a training under the default budget, whose samples give
the probed step, with half a training without PrecScope before and after. Ratios are taken within that process;
compiling is reported apart.
The data is one random batch, repeated, so that no input pipeline takes part.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")


def build_mlp(keras: Any, small: bool) -> tuple[Any, tuple[int, ...], int]:
    layers = keras.layers
    stack = [layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dropout(0.2)]
    model = keras.Sequential([keras.Input((28, 28)), *stack, layers.Dense(10, activation="softmax")])
    return model, (32, 28, 28), 10


def build_lstm(keras: Any, small: bool) -> tuple[Any, tuple[int, ...], int]:
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((100, 1)), layers.LSTM(64), layers.Dense(2, dtype="float32", activation="softmax")]
    )
    return model, (32, 100, 1), 2


def build_resnet50(keras: Any, small: bool) -> tuple[Any, tuple[int, ...], int]:
    side, batch = (32, 4) if small else (224, 128)
    return keras.applications.ResNet50(weights=None, input_shape=(side, side, 3)), (batch, side, side, 3), 1000


CASES = {"mlp": build_mlp, "lstm": build_lstm, "resnet50": build_resnet50}
#: What the prototype recorded of ResNet-50, for comparison with it.
SELECTIONS: dict[str, dict[str, Any]] = {"all": {}, "conv-dense-add": {"layer_types": ["Conv2D", "Dense", "Add"]}}


class Case:
    """One model under one policy, on one repeated batch."""

    def __init__(self, name: str, policy: str, small: bool) -> None:
        import keras
        import tensorflow as tf

        self.keras, self.tf = keras, tf
        self.gpu = bool(tf.config.list_physical_devices("GPU"))
        keras.mixed_precision.set_global_policy(policy)
        keras.utils.set_random_seed(0)
        self.model, shape, classes = CASES[name](keras, small)
        # XLA where Keras would choose it on a GPU: everywhere but in cuDNN's LSTM.
        self.model.compile("adam", "sparse_categorical_crossentropy", jit_compile="auto" if name == "lstm" else True)
        x = tf.random.stateless_uniform(shape, [1, 2])
        y = tf.random.stateless_uniform(shape[:1], [3, 4], 0, classes, tf.int32)
        options = tf.data.Options()
        # Its autotuner's thread can miss that an iterator goes, which then takes a second; with or without PrecScope.
        options.autotune.enabled = False
        self.data = tf.data.Dataset.from_tensors((x, y)).repeat().prefetch(4).with_options(options)

    def fit(self, steps: int, callbacks: Sequence[Any] = ()) -> float:
        """Train `steps` steps and return the seconds that took, the device included."""
        start = time.perf_counter()
        self.model.fit(self.data, steps_per_epoch=steps, epochs=1, verbose=0, callbacks=list(callbacks))
        self.model.optimizer.iterations.numpy()
        return time.perf_counter() - start

    def reset_peak(self) -> None:
        """Let the allocator count its peak anew."""
        if self.gpu:
            self.tf.config.experimental.reset_memory_stats("GPU:0")

    def peak_bytes(self) -> int | None:
        """Return the allocator's peak on a GPU, None on a CPU."""
        return self.tf.config.experimental.get_memory_info("GPU:0")["peak"] if self.gpu else None

    def plain_steps(self, steps: int) -> list[float]:
        """Return seconds of single plain steps, each waited for."""
        iterator = iter(self.data)
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            self.model.train_function(iterator)
            self.model.optimizer.iterations.numpy()
            times.append(time.perf_counter() - start)
        return times

    def unsampled(self, steps: int, turns: int) -> dict[str, Any]:
        """Train without PrecScope and under a session whose samples never come due, in turns."""
        import precscope

        seconds: dict[bool, list[float]] = {False: [], True: []}
        options = known({"start": 10**9, "profile_steps": 0, "device_interval_s": 0.0, "reference": False})
        for turn in range(2 * turns):
            watched = turn % 4 in (1, 2)  # without, with, with, without: drift cancels
            with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
                if watched:
                    stack.enter_context(precscope.profile(self.model, Path(folder) / "run", **options))
                seconds[watched].append(self.fit(steps))
        ratios = [under / without for without, under in zip(seconds[False], seconds[True], strict=True)]
        return {"unsampled_ratio": statistics.median(ratios), "unsampled_ratios": ratios, "unsampled_steps": steps}

    def profiled(self, steps: int, options: dict[str, Any]) -> dict[str, Any]:
        """Train `steps` steps with the default budget, and half as many without PrecScope before and after.

        So a drift of the machine cancels. Return what that cost.
        """
        import precscope

        without_s = self.fit(steps // 2)
        # The plain peak leaves out what compiling takes to try kernels, so this one does too (sampled at step 1).
        after_compile = self.keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: self.reset_peak() if batch == 3 else None
        )
        with tempfile.TemporaryDirectory() as folder:
            # Time and memory sampling are measured by scripts of their own.
            options = options | {"profile_steps": 0, "device_interval_s": 0.0, "reference": False}
            with precscope.profile(self.model, Path(folder) / "run", **known(options)):
                profiled_s = self.fit(steps, [after_compile])
            run = precscope.open_run(Path(folder) / "run")
        peak_bytes = self.peak_bytes()
        without_s += self.fit(steps - steps // 2)
        costs = {cost.kind: cost for cost in run.costs}
        compile_s = costs["compile"].time_ns / 1e9
        return {
            "tensors": len(run.tensors),
            "probed_compile_s": compile_s,
            "probed_step_ms": statistics.median(sample.step_time_ns for sample in run.samples[1:]) / 1e6,
            "read_ms": costs["read"].time_ns / costs["read"].count / 1e6,
            "write_ms": costs["write"].time_ns / costs["write"].count / 1e6,
            "probed_peak_bytes": peak_bytes,
            "steps": steps,
            "samples": len(run.samples),
            "without_s": without_s,
            "profiled_s": profiled_s,
            "profiled_less_compile_s": profiled_s - compile_s,
            "costs_s": {kind: cost.time_ns / 1e9 for kind, cost in costs.items()},
            "cost_counts": {kind: cost.count for kind, cost in costs.items()},
        }


def known(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that this version has."""
    from dataclasses import fields

    from precscope.options import Options

    names = {field.name for field in fields(Options)}
    return {name: value for name, value in options.items() if name in names}


def measure(
    name: str, policy: str, selections: Sequence[str], small: bool, total_steps: int, turns: int
) -> Iterator[dict[str, Any]]:
    """Run one case and yield one record of it for each selection of layers."""
    import keras
    import tensorflow as tf

    case = Case(name, policy, small)
    compile_s = case.fit(1)
    case.fit(20)
    case.reset_peak()
    plain = case.plain_steps(50)
    record: dict[str, Any] = {
        "case": name,
        "policy": policy,
        "device": device_name(tf),
        "versions": f"TensorFlow {tf.__version__}, Keras {keras.__version__}, Python {platform.python_version()}",
        "plain_compile_s": compile_s,
        "plain_step_ms": statistics.median(plain) * 1e3,
        "plain_quartiles_ms": [value * 1e3 for value in statistics.quantiles(plain, n=4)[::2]],
        "plain_peak_bytes": case.peak_bytes(),
    }
    print(json.dumps(record), flush=True)
    if turns:
        record |= case.unsampled(max(total_steps // 8, 20), turns)
        print(json.dumps(record), flush=True)
    for selection in selections:
        yield record | {"layers": selection} | case.profiled(total_steps, SELECTIONS[selection])


def device_name(tf: Any) -> str:
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name"))
    return f"CPU, {os.cpu_count()} cores"


def table(records: list[dict[str, Any]]) -> str:
    """Return the records as a Markdown table."""
    lines = [
        "| model | policy | layers | tensors | plain step ms | probed step | peak memory | compile: plain, probed s "
        "| read + write ms | total with the default budget |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in records:
        ratio = f"{r['probed_step_ms'] / r['plain_step_ms']:.2f}x ({r['probed_step_ms']:.2f} ms)"
        peak, plain_peak = r["probed_peak_bytes"], r["plain_peak_bytes"]
        memory = "–" if not plain_peak else f"{100 * (peak / plain_peak - 1):+.1f} % of {plain_peak / 2**30:.2f} GiB"
        compile_s = f"{r['plain_compile_s']:.1f}, {r['probed_compile_s']:.1f}"
        share = 100 * (r["profiled_less_compile_s"] / r["without_s"] - 1)
        total = f"{share:+.1f} % over {r['steps']} steps ({r['without_s']:.1f} s), {r['samples']} samples"
        lines.append(
            f"| {r['case']} | {r['policy']} | {r['layers']} | {r['tensors']} | {r['plain_step_ms']:.2f} | {ratio} "
            f"| {memory} | {compile_s} | {r['read_ms'] + r['write_ms']:.1f} | {total} |"
        )
    devices = sorted({f"{r['device']}; {r['versions']}" for r in records})
    return "\n".join([*lines, "", "Measured on: " + "; ".join(devices)])


@click.command()
@click.option("--case", type=click.Choice(list(CASES)), default="mlp", show_default=True)
@click.option("--policy", type=click.Choice(POLICIES), default="mixed_float16", show_default=True)
@click.option("--layers", type=click.Choice(list(SELECTIONS)), multiple=True, default=["all"], show_default=True)
@click.option("--total-steps", default=2000, show_default=True, help="Steps of the whole training.")
@click.option("--turns", default=7, show_default=True, help="Turns that time unsampled steps; 0 leaves them out.")
@click.option("--small", is_flag=True, help="Small inputs, to try the script on a CPU.")
@click.option("--out", type=click.Path(path_type=Path), help="Append the record to this file of JSON lines.")
@click.option("--table", "table_of", type=click.Path(path_type=Path, exists=True), help="Print this file as a table.")
def main(
    case: str,
    policy: str,
    layers: tuple[str, ...],
    total_steps: int,
    turns: int,
    small: bool,
    out: Path | None,
    table_of: Path | None,
) -> None:
    """Measure one case, or print measured cases as a table."""
    if table_of is not None:
        print(table([json.loads(line) for line in table_of.read_text().splitlines() if line.strip()]))
        return
    for record in measure(case, policy, layers, small, total_steps, turns):
        print(json.dumps(record), flush=True)
        if out is not None:
            with out.open("a") as file:
                file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
