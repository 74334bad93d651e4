"""Step time and memory of five trainings under float32, mixed_float16 and mixed_bfloat16.

    python benchmarks/policies.py --out policies.jsonl          # on a GPU: minutes, most of them XLA compiling
    python benchmarks/policies.py --small --out /tmp/small.jsonl  # tiny shapes, to rehearse it anywhere
    python benchmarks/policies_table.py policies.jsonl          # the Markdown table of docs/benchmarks.md

Each policy has a process of its own and the policies' rounds alternate, as in `precscope bench`. The cases are in the
order of their importance, the one that compiles longest last; each is appended to --out as one JSON line as soon as it
is done. Images are random bytes, one batch that the input pipeline hands out again and again: a step includes its copy
to the GPU (a quarter of what float32 images would take), and the cast there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precscope.bench_result import bench_json
from precscope.errors import PrecScopeError
from precscope.probes.bench import BENCH_POLICIES, BenchPlan, run_bench

SMALL = "PRECSCOPE_BENCHMARK_SMALL"  # the workers build the models, so they are told through the environment


@dataclass(frozen=True)
class Case:
    """One training; `function` builds it."""

    name: str
    title: str
    function: str
    steps: int


CASES = (
    Case("mlp-32", "MNIST MLP, batch 32", "mlp_32", 200),
    Case("resnet18-32", "ResNet-18, 224x224, batch 32", "resnet18_32", 50),
    Case("lstm-32", "LSTM 128, 100 steps, batch 32", "lstm_32", 50),
    Case("lstm-256", "LSTM 128, 100 steps, batch 256", "lstm_256", 50),
    Case("resnet18-256", "ResNet-18, 224x224, batch 256", "resnet18_256", 20),
    Case("resnet50-128", "ResNet-50 (keras.applications), 224x224, batch 128", "resnet50_128", 20),
)


def mlp_32() -> tuple[Any, Any]:
    from precscope.probes.demos import mnist

    return mnist.build_for_bench(32)


def lstm_32() -> tuple[Any, Any]:
    from precscope.probes.demos import lstm

    return lstm.build_for_bench(32)


def lstm_256() -> tuple[Any, Any]:
    from precscope.probes.demos import lstm

    return lstm.build_for_bench(8 if is_small() else 256)


def resnet18_32() -> tuple[Any, Any]:
    return resnet18(2 if is_small() else 32)


def resnet18_256() -> tuple[Any, Any]:
    return resnet18(4 if is_small() else 256)


def resnet18(batch_size: int) -> tuple[Any, Any]:
    import keras

    from precscope.probes.demos import resnet18 as demo

    size, width = (32, 8) if is_small() else (224, 64)
    return demo.build(keras.config.dtype_policy().name, size, width), images(batch_size, size, classes=10)


def resnet50_128() -> tuple[Any, Any]:
    """ResNet-50 as Keras has it, its softmax in float32."""
    import keras

    size, batch_size = (32, 2) if is_small() else (224, 128)
    body = keras.applications.ResNet50(weights=None, include_top=False, pooling="avg", input_shape=(size, size, 3))
    logits = keras.layers.Dense(1000, name="logits")(body.output)
    model = keras.Model(body.input, keras.layers.Activation("softmax", dtype="float32")(logits), name="resnet50")
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model, images(batch_size, size, classes=1000)


def images(batch_size: int, size: int, classes: int) -> Any:
    import numpy as np
    import tensorflow as tf

    random = np.random.default_rng(0)
    x = random.integers(0, 256, (batch_size, size, size, 3), np.uint8)
    return tf.data.Dataset.from_tensors((x, random.integers(0, classes, batch_size)))


def is_small() -> bool:
    return os.environ.get(SMALL) == "1"


def main() -> int:
    arguments = parse()
    if arguments.small:
        os.environ[SMALL] = "1"
    cases = [case for case in CASES if not arguments.only or case.name in arguments.only]
    failed = 0
    for case in cases:
        began_s = time.perf_counter()
        print(f"{case.title}{' (small)' if arguments.small else ''}", flush=True)
        try:
            line = measure(case, arguments)
        except PrecScopeError as error:
            print(f"  {error}", flush=True)
            failed += 1
            continue
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(f"  took {time.perf_counter() - began_s:.0f} s", flush=True)
    return 1 if failed else 0


def measure(case: Case, arguments: argparse.Namespace) -> str:
    """Run a case and return its JSON line."""
    steps = arguments.steps or (3 if arguments.small else case.steps)
    plan = BenchPlan(
        f"{Path(__file__).resolve()}:{case.function}",
        arguments.policies,
        steps,
        2 if arguments.small else arguments.repeats,
        timeout_s=arguments.limit,
    )
    result = run_bench(plan, print_progress)
    for policy in result.policies:
        spread = policy.step_time_ms
        ratio = f"{policy.ratio_to_float32:.2f} of float32" if policy.ratio_to_float32 else ""
        took = "no figure" if spread is None else f"{spread.median:8.3f} ms  {ratio}"
        print(f"  {policy.policy:<16} {took}  {policy.error or ''}", flush=True)
    # The entry holds a path of this machine, which says nothing to others.
    small = {"small": arguments.small, "entry": case.function}
    return json.dumps({"case": case.name, "title": case.title, **json.loads(bench_json(result)), **small})


def print_progress(words: str, units: int) -> None:
    if units and "round" not in words:
        print(f"  {words}: done", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines are appended to this file")
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], help="these cases only")
    parser.add_argument("--policies", nargs="+", type=str, default=BENCH_POLICIES)
    parser.add_argument("--steps", type=int, help="steps in a round (by default the case's own)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each policy (5)")
    parser.add_argument("--limit", type=float, default=150, help="seconds to build, to compile, or for a round (150)")
    parser.add_argument("--small", action="store_true", help="tiny shapes, few steps: a rehearsal")
    arguments = parser.parse_args()
    arguments.policies = tuple(arguments.policies)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
