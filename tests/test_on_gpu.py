"""What only a GPU shows: `pytest -m gpu tests/test_on_gpu.py` on a host with one; two GPUs for the last test.

Each demo with a fault is taken from the command line to the repaired training, compiled by XLA, as `docs/verify.md`
walks through it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import precscope
from precscope.advice import Evidence, analyze, keep_float32
from precscope.cli import main
from precscope.formats import FORMATS
from precscope.probes.statistic import finish, partial_statistics
from precscope.statistics import describe
from tests.test_statistic import assert_agrees, wild

if TYPE_CHECKING:
    from pathlib import Path

    from precscope.reader import Run

pytestmark = pytest.mark.gpu

QUIET: dict[str, Any] = {"profile_steps": 0, "device_interval_s": 0.0, "reference": False}


@pytest.fixture(autouse=True)
def gpus() -> int:
    """How many GPUs TensorFlow sees; without one there is nothing to test here."""
    found = len(tf.config.list_physical_devices("GPU"))
    if not found:
        pytest.skip("needs a GPU, and TensorFlow sees none: tf.config.list_physical_devices('GPU') is empty")
    return found


# The faulty demos, end to end.

#: What float32 is needed for, and the sentence with which it is proven.
FAULTS = {"head": {"head"}, "norm": {"norm"}, "range": {"square", "rescale"}}


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def accuracy(text: str) -> float:
    found = re.search(r"Held-out accuracy ([\d.]+)", text)
    assert found is not None, text
    return float(found[1])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_demo_is_diagnosed_proven_priced_and_repaired_under_xla(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = ["demo", "mnist", "--fault", fault]
    broken, repaired = tmp_path / "broken", tmp_path / "repaired"

    assert main([*demo, "--run-dir", str(broken)]) == 0
    accuracy_broken = accuracy(shown(capsys))
    run = precscope.open_run(broken)
    assert run.record.model["jit_compile"] is True
    assert run.record.hardware["gpus"]
    assert set(keep_float32(analyze(Evidence(run)))) == FAULTS[fault]

    assert main(["verify", str(broken), "--model", f"precscope.probes.demos.mnist_faults:build_{fault}"]) == 0
    assert "in float32 suffice" in shown(capsys)
    proof = precscope.open_run(broken).verification
    assert proof is not None
    assert (proof.proven, proof.is_minimal, set(proof.pins)) == (True, True, FAULTS[fault])
    assert not proof.before.passed
    assert proof.after is not None
    assert proof.after.worst.cosine is not None
    assert proof.after.worst.cosine > proof.criterion.gradient_cosine
    assert set(proof.prices) == {"plain", "policy", "float32"}
    for price in proof.prices.values():
        assert price.time_ms is not None
        assert price.memory_mib is not None
        assert price.memory_mib > 256 * 784 * 4 / 2**20  # the batch alone
    assert all(price.memory_mib is not None for price in proof.pin_prices.values())

    policy = str(broken / "policy.yaml")
    assert main([*demo, "--run-dir", str(repaired), "--apply", policy]) == 0
    accuracy_repaired = accuracy(shown(capsys))
    run = precscope.open_run(repaired)
    assert run.record.model["jit_compile"] is True
    assert keep_float32(analyze(Evidence(run))) == ()
    assert accuracy_repaired > 0.8
    if fault == "head":  # learns all the same, at a scale that is of no use
        skipped = [open_steps_skipped(path) for path in (broken, repaired)]
        assert skipped[0] >= 10
        assert skipped[1] <= 4
    else:
        assert accuracy_broken < 0.5


def open_steps_skipped(path: Path) -> int:
    looks = [look.steps_skipped for look in precscope.open_run(path).loss_scales if look.steps_skipped is not None]
    return looks[-1]


# The statistic.


@pytest.mark.parametrize("jit", [False, True], ids=["no_xla", "xla"])
@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("size", [129, 100_003])
def test_the_statistic_of_a_tensor_on_the_gpu_is_the_references(name: str, size: int, jit: bool) -> None:
    x = wild(name, size)
    with tf.device("GPU:0"):
        values = tf.identity(tf.constant(x))

        @tf.function(jit_compile=jit, autograph=False)
        def row(tensor: Any) -> Any:
            return finish([partial_statistics(tensor, FORMATS[name])])

        result = row(values)
    assert "GPU:0" in values.device
    assert_agrees(result.numpy(), describe(x))


# A run.


def column(run: Run, layer: str, kind: Any, name: str = "0") -> int:
    return next(tensor.index for tensor in run.find(layer, kind) if tensor.name == name)


def sums(policy: str, loss_scale: float, jit: bool = True) -> keras.Model:
    """Return a model that adds up two numbers and does not learn: all that happens in it can be done by hand."""
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(1, use_bias=False, name="sum", dtype=policy)], name="sums"
    )
    model.set_weights([np.ones((2, 1), np.float32)])
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.0), initial_scale=loss_scale)
    model.compile(optimizer, "mse", jit_compile=jit)
    return model


def test_a_run_under_xla_holds_the_numbers_that_were_computed(tmp_path: Path) -> None:
    """x = [[1, 2], [3, 4]], y = 0: outputs 3 and 7; the loss 8 (3^2 + 7^2) / 2 has the gradients 8 * 3 and 8 * 7."""
    x = np.array([[1, 2], [3, 4]], np.float32)
    model = sums("mixed_float16", loss_scale=8.0)
    with precscope.profile(model, tmp_path / "run", every=1, **QUIET):
        model.fit(np.tile(x, (3, 1)), np.zeros((6, 1), np.float32), batch_size=2, shuffle=False, verbose=0)
    run = precscope.open_run(tmp_path / "run")
    assert run.record.model["jit_compile"] is True
    assert run.notices == ()
    last = len(run.samples) - 1
    expected = {
        ("activation", "0"): ("float16", 2, 3.0, 7.0, 5.0),
        ("gradient", "0"): ("float16", 2, 24.0, 56.0, 40.0),
        ("weight_gradient", "kernel"): ("float32", 2, 24.0 + 3 * 56.0, 2 * 24.0 + 4 * 56.0, (192.0 + 272.0) / 2),
        ("weight", "kernel"): ("float32", 2, 1.0, 1.0, 1.0),
    }
    for (kind, name), numbers in expected.items():
        place = column(run, "sum", kind, name)
        found = run.statistics(last, place)
        assert (run.tensors[place].dtype, found.count, found.min, found.max, found.mean) == numbers, kind
    sample = run.samples[last]
    assert (sample.loss, sample.loss_scale, sample.applied) == (29.0, 8.0, True)
    assert sample.allocator_peak_bytes is not None
    assert sample.allocator_peak_bytes > 0


def test_time_by_layer_and_the_gpus_state_are_recorded(tmp_path: Path, gpus: int) -> None:
    keras.utils.set_random_seed(1)
    x = np.random.default_rng(1).normal(size=(2560, 16, 16, 3)).astype(np.float32)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            *(layers.Conv2D(32, 3, name="conv", dtype="mixed_float16"), layers.BatchNormalization(name="norm")),
            *(layers.GlobalAveragePooling2D(), layers.Dense(10, name="head")),
        ]
    )
    model.compile(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
    )
    with precscope.profile(model, tmp_path / "run", profile_start=10) as session:
        model.fit(x, np.arange(2560) % 10, batch_size=64, epochs=3, verbose=0)
    run = precscope.open_run(session.path)
    conv = next(row for row in run.layer_times() if row.layer == "conv")
    assert conv.forward_ms
    assert conv.backward_ms
    assert [device.kind for device in run.devices].count("gpu") + [d.kind for d in run.devices].count("mig") == gpus
    looks = [look for look in run.device_samples if look.device != "host"]
    assert looks
    assert all(look.memory_used_bytes for look in looks)
    assert main(["report", str(session.path)]) == 0


# Several GPUs.


def test_a_strategy_over_all_gpus_records_every_replica(tmp_path: Path, gpus: int) -> None:
    """Two examples a GPU, the k-th pair [[k, 1], [2 k, 1]], outputs k + 1 and 2 k + 1, k from 1."""
    if gpus < 2:
        pytest.skip(f"needs two GPUs, and TensorFlow sees {gpus}")
    numbers = np.arange(1, gpus + 1, dtype=np.float32)
    x = np.stack([np.stack([numbers, 2 * numbers], 1).ravel(), np.ones(2 * gpus, np.float32)], 1)
    with tf.distribute.MirroredStrategy([f"GPU:{number}" for number in range(gpus)]).scope():
        model = sums("mixed_float16", loss_scale=8.0, jit=False)  # Keras' LossScaleOptimizer fails here under XLA
    with precscope.profile(model, tmp_path / "run", every=1, **QUIET):
        model.fit(
            np.tile(x, (3, 1)), np.zeros((6 * gpus, 1), np.float32), batch_size=2 * gpus, shuffle=False, verbose=0
        )
    run = precscope.open_run(tmp_path / "run")
    assert (run.record.model["strategy"], run.record.model["replicas"]) == ("MirroredStrategy", gpus)
    assert [item.number for item in run.replicas] == list(range(gpus))
    assert [item.device[-5:] for item in run.replicas] == [f"GPU:{number}" for number in range(gpus)]
    place, last = column(run, "sum", "activation"), len(run.samples) - 1
    outputs = run.statistics(last, place)
    assert (outputs.count, outputs.min, outputs.max) == (2 * gpus, 2.0, 2.0 * gpus + 1)
    for number, replica in enumerate(run.replica_samples(last), start=1):
        scalars = replica.scalars[place]
        assert (scalars["count"], scalars["min"], scalars["max"]) == (2, number + 1, 2 * number + 1)
        assert replica.loss == ((number + 1) ** 2 + (2 * number + 1) ** 2) / 2
    assert run.samples[last].applied is True
