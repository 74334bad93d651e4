"""Misuse, on small models that are really trained into it: what is told before or at the first step, and its harm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import precscope
from precscope.advice import analyze
from precscope.advice.origin_account import main_origin
from precscope.probes.lint import lint_model
from tests.models import data
from tests.zoo.animals import case_named
from tests.zoo.case import build
from tests.zoo.training import train_model

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS: dict[str, Any] = {"reference": False, "profile_steps": 0, "device_interval_s": 0.0, "every": 1}
pytestmark = pytest.mark.filterwarnings("ignore::precscope.probes.keeper.PrecScopeWarning")


def lint(model: keras.Model, batch: Any = None) -> dict[str, Any]:
    dataset = None if batch is None else tf.data.Dataset.from_tensors(batch)
    return {finding.check: finding for finding in lint_model(model, dataset).findings}


@pytest.mark.parametrize("way", ["policies of layers", "a global policy map"])
def test_an_optimizer_that_keras_leaves_unwrapped(tmp_path: Path, way: str) -> None:
    policy: Any = "mixed_float16"
    if way == "a global policy map":
        keras.config.set_dtype_policy(keras.dtype_policies.DTypePolicyMap(default_policy="mixed_float16"))
        policy = None
    try:
        keras.utils.set_random_seed(1)
        stack = [keras.layers.Dense(16, "tanh", name="hidden", dtype=policy)]
        model = keras.Sequential([keras.Input((6,)), *stack, keras.layers.Dense(1, dtype="float32")])
        model.compile("sgd", "mse", loss_weights=1e-7, jit_compile=False)
    finally:
        keras.config.set_dtype_policy("float32")
    assert lint(model)["unwrapped_optimizer"].severity == "error"
    x, _ = data(16)
    with precscope.profile(model, tmp_path / "run", **OPTIONS):
        model.fit(x, x[:, :1], batch_size=8, verbose=0)
    run = precscope.open_run(tmp_path / "run")
    assert any("but the loss is not scaled: small gradients" in notice.message for notice in run.notices)
    assert "unwrapped_optimizer" in {finding.id for finding in analyze(run)}
    # The harm is real: gradients below 3e-8 have become zero.
    (gradient,) = run.find(layer="hidden", kind="gradient")
    assert run.statistics(0, gradient.index).zeros == run.statistics(0, gradient.index).count


def test_scaling_in_bfloat16_buys_nothing(tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    hidden = keras.layers.Dense(16, name="hidden", dtype="mixed_bfloat16")
    model = keras.Sequential([keras.Input((6,)), hidden, keras.layers.Dense(1, dtype="float32")])
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-3)), "mse", jit_compile=False)
    assert lint(model)["needless_loss_scaling"].severity == "info"
    x, _ = data(16)
    with precscope.profile(model, tmp_path / "run", **OPTIONS):
        model.fit(x, x[:, :1], batch_size=8, verbose=0)
    run = precscope.open_run(tmp_path / "run")
    (gradient,) = run.find(layer="hidden", kind="gradient")
    scaled = run.statistics(0, gradient.index)
    assert scaled.smallest_nonzero is not None
    # Without the scale it would lie far above the smallest number of bfloat16: nothing was to be rescued.
    assert scaled.smallest_nonzero / 2**15 > 1e-30


def test_an_epsilon_that_vanishes_in_float16(tmp_path: Path) -> None:
    case = case_named("tiny_epsilon")
    model = build(case)
    assert lint(model)["constant_vanishes"].layer == "norm"
    options: dict[str, Any] = {"reference": False, "profile_steps": 0, "device_interval_s": 0.0, "tripwire": True}
    train_model(case, model, precscope.profile(model, tmp_path / "run", **options), steps=45)
    origin = main_origin(precscope.open_run(tmp_path / "run").origins)
    assert origin is not None
    assert (origin.layer, origin.direction, origin.step) == ("norm", "forward", case.first_bad_step)


@pytest.mark.parametrize(("name", "layer"), [("positions_8192", "encoding"), ("ids_as_numbers", "lookup")])
def test_ids_that_become_float16(name: str, layer: str) -> None:
    case = case_named(name)
    found = lint(build(case))
    assert (found["integers_cast"].layer, found["integers_cast"].severity) == (layer, "warning")
    with tf.device("CPU"):
        assert len(np.unique(np.arange(8000).astype(np.float16))) < 5200  # of 8,000 ids


class FunctionalLoss(keras.Model):
    """A train step that gives the labels to a function, which casts them to the dtype of the prediction."""

    def __init__(self, cast: bool) -> None:
        super().__init__(dtype="mixed_float16")
        self.dense = keras.layers.Dense(1, dtype="mixed_float16")
        self.cast = cast

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def train_step(self, batch: Any) -> Any:
        x, y = batch
        with tf.GradientTape() as tape:
            output = self(x, training=True)
            output = tf.cast(output, tf.float32) if self.cast else output
            loss = tf.reduce_mean(keras.losses.mean_squared_error(y, output))
            scaled = self.optimizer.scale_loss(tf.cast(loss, tf.float32))
        self.optimizer.apply(tape.gradient(scaled, self.trainable_variables), self.trainable_variables)
        return {"own_loss": loss}


@pytest.mark.parametrize("cast", [True, False])
def test_labels_that_become_float16(cast: bool) -> None:
    model = FunctionalLoss(cast)
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.0)), jit_compile=False)
    x = np.zeros((8, 4), np.float32)
    y = np.full((8, 1), 70_000.0, np.float32)  # house prices, beyond float16
    loss = model.fit(x, y, batch_size=8, verbose=0).history["own_loss"][0]
    assert np.isfinite(loss) == cast
    found = lint(model, (x, y))
    assert ("labels_cast" in found) is not cast
    if not cast:
        assert found["labels_cast"].place is not None
        assert "mean_squared_error(y, output)" in found["labels_cast"].place


def test_sizes_that_tensor_cores_cannot_use_compute_the_same_with_padding() -> None:
    found = lint(build(case_named("exp_12")))
    assert "'head'" not in found.get("size_not_multiple_of_8", "")
    odd = keras.Sequential([keras.Input((6,)), keras.layers.Dense(9, name="odd", dtype="mixed_float16")])
    even = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, name="even", dtype="mixed_float16")])
    assert "'odd'" in lint(odd)["size_not_multiple_of_8"].sentence
    assert "size_not_multiple_of_8" not in lint(even)
