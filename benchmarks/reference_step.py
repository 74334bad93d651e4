"""What a reference step costs: tracing it, and running it, as a ratio to the plain train step.

    python benchmarks/reference_step.py                      # all cases
    python benchmarks/reference_step.py --case mnist --policy mixed_bfloat16

One process a case. The plain step is Keras' own, compiled as Keras would choose here; the reference step is two passes
that XLA does not compile. Both run on one random batch, and the median of some runs is told.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from typing import Any

import click

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

CASES = ("mnist", "lstm", "resnet18")


@click.command()
@click.option("--case", "cases", type=click.Choice(CASES), multiple=True, help="Which demo; all by default.")
@click.option("--policy", default="mixed_float16", show_default=True, help="dtype policy of the training.")
@click.option("--batch", type=int, help="Examples in the batch; the demo's own by default.")
@click.option("--runs", default=5, show_default=True, help="How many runs of each.")
@click.option("--here", is_flag=True, hidden=True)
def main(cases: tuple[str, ...], policy: str, batch: int | None, runs: int, here: bool) -> None:
    """Measure reference steps against plain ones."""
    if here:
        print(measure(cases[0], policy, batch, runs), flush=True)
        return
    print(
        f"{'case':<10}{'batch':>6}{'plain step':>14}{'tracing':>12}{'first run':>12}{'reference step':>17}{'ratio':>8}"
    )
    for case in cases or CASES:
        command = [sys.executable, __file__, "--here", "--case", case, "--policy", policy, "--runs", str(runs)]
        subprocess.run([*command, *(["--batch", str(batch)] if batch else [])], check=True)


def measure(case: str, policy: str, batch: int | None, runs: int) -> str:
    """Return one row of the table."""
    import tensorflow as tf

    from precscope.options import Options
    from precscope.probes.batch_handout import Batch
    from precscope.probes.demos import load_demo
    from precscope.probes.internals.optimizers import loss_scale
    from precscope.probes.model_records import ModelRecords
    from precscope.probes.reference_step import ReferenceStep

    demo = load_demo(case)
    model = demo.build(policy)
    size = batch or demo.BATCH_SIZE
    inputs = [_random(tensor.shape[1:], tensor.dtype, size) for tensor in model.inputs]
    data = (inputs[0], tf.zeros([size], tf.int32))
    plain_s = _median([_timed(lambda: model.train_on_batch(*data)) for _ in range(runs + 2)][2:])

    scale = loss_scale(model.optimizer)
    step = ReferenceStep(model, model.optimizer, ModelRecords(model, Options()).plans)
    times: list[float] = []
    tracing_s = 0.0
    for _ in range(runs + 1):
        start = time.perf_counter()
        measured = step.measure(Batch((data,), {}), 1.0 if scale is None else float(scale))
        tracing_s += measured.trace_time_ns / 1e9
        times.append(time.perf_counter() - start - measured.trace_time_ns / 1e9)
    first_s, reference_s = times[0], _median(times[1:])
    return (
        f"{case:<10}{size:>6}{1000 * plain_s:>11.1f} ms{tracing_s:>10.1f} s{first_s:>10.2f} s"
        f"{1000 * reference_s:>14.1f} ms{reference_s / plain_s:>7.1f}x"
    )


def _random(shape: Any, dtype: str, size: int) -> Any:
    import tensorflow as tf

    shape = [size, *shape]
    if "int" in str(dtype):
        return tf.random.stateless_uniform(shape, [1, 2], 0, 10, tf.as_dtype(dtype))
    return tf.random.stateless_uniform(shape, [1, 2])


def _timed(action: Any) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _median(times: list[float]) -> float:
    return statistics.median(times)


if __name__ == "__main__":
    main()
