"""What describing a tensor costs, as a ratio to adding it up: the first stage of the statistic, where a tensor is.

    python benchmarks/statistic.py                       # on a GPU; on a CPU with --elements 65536

Each figure is the time of one function, compiled by XLA, that treats --tensors tensors one after the other; the time of
the function that only adds each of them up stands in the same row. Calls alternate, so that a drift of the machine
cancels. Reading a tensor takes at least its bytes by the memory's bandwidth, which is what to aim at.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from typing import TYPE_CHECKING, Any

import click

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def for_one_tensor(part: str, dtype: str) -> Callable[[Any], list[Any]]:
    """Return what is done to one tensor: the whole first stage, or a part of it."""
    import tensorflow as tf

    from precscope.formats import FORMATS
    from precscope.probes.statistic import partial_statistics

    def described(x: Any) -> list[Any]:
        partials = partial_statistics(x, FORMATS[dtype])
        return [*partials.rows, partials.subset] if part == "all" else list(partials.rows)

    return described if part != "sum" else lambda x: [tf.reduce_sum(tf.cast(x, tf.float32))]


def compiled(part: str, dtype: str) -> Callable[..., Any]:
    """Return a function of tensors that gives one number, which needs all that is computed of each of them."""
    import tensorflow as tf

    from precscope.probes.internals.xla import tie

    one = for_one_tensor(part, dtype)

    def every(*tensors: Any) -> Any:
        outputs = [output for x in tensors for output in tie([x, *one(x)])[1:]]
        return tf.add_n([tf.reduce_max(tf.cast(output, tf.float32)) for output in outputs])

    return tf.function(every, jit_compile=True, autograph=False)


def seconds(function: Callable[..., Any], tensors: Sequence[Any], calls: int) -> float:
    """Return the time of one call, of several that were queued together."""
    start = time.perf_counter()
    for _ in range(calls):
        last = function(*tensors)
    last.numpy()
    return (time.perf_counter() - start) / calls


@click.command()
@click.option("--elements", default=[2**17, 3_211_264, 25_690_112], multiple=True, show_default=True)
@click.option("--dtype", default="float16", show_default=True, type=click.Choice(["float16", "bfloat16", "float32"]))
@click.option("--tensors", default=20, show_default=True)
@click.option("--rounds", default=7, show_default=True)
def main(elements: tuple[int, ...], dtype: str, tensors: int, rounds: int) -> None:
    """Measure each size and print a table."""
    import keras
    import tensorflow as tf

    print(f"{'elements':>12} {'part':<6} {'compile s':>9} {'us a tensor':>12} {'to a sum':>9}")
    for size in elements:
        values = [tf.cast(tf.random.stateless_normal([size], [n, 1]), dtype) for n in range(tensors)]
        functions = {part: compiled(part, dtype) for part in ("sum", "rows", "all")}
        compile_s = {part: seconds(function, values, 1) for part, function in functions.items()}
        times: dict[str, list[float]] = {part: [] for part in functions}
        for _ in range(rounds):
            for part, function in functions.items():
                times[part].append(seconds(function, values, 10))
        medians = {part: statistics.median(measured) for part, measured in times.items()}
        for part, median in medians.items():
            us, ratio = median / tensors * 1e6, median / medians["sum"]
            print(f"{size:>12,} {part:<6} {compile_s[part]:>9.2f} {us:>12.1f} {ratio:>8.2f}x", flush=True)
    gpus = tf.config.list_physical_devices("GPU")
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name") if gpus else f"CPU, {os.cpu_count()}"
    versions = f"TensorFlow {tf.__version__}, Keras {keras.__version__}, Python {platform.python_version()}"
    print(f"{dtype}, {tensors} tensors, median of {rounds} rounds of 10 calls; {name}; {versions}")


if __name__ == "__main__":
    main()
