"""Train steps that people write: several optimizers, a step that is a tf.function, layers beside a graph."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import precscope
from precscope.probes.keeper import PrecScopeWarning
from tests.models import data, mlp

if TYPE_CHECKING:
    from pathlib import Path

QUIET: dict[str, Any] = {"profile_steps": 0, "device_interval_s": 0.0, "reference": False}
layers, ops = keras.layers, keras.ops


class Pair(keras.Model):
    """Two layers with an optimizer each, updated one after the other, as in a GAN."""

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        self.left, self.right = layers.Dense(3), layers.Dense(1)
        self.optimizers_in_use = [first, second]

    def call(self, x: Any) -> Any:
        return self.right(self.left(x))

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        for number, layer in enumerate((self.left, self.right)):
            optimizer = self.optimizers_in_use[number]
            with tf.GradientTape() as tape:
                loss = (number + 1.0) * ops.mean(ops.square(self(x, training=True) - y))
                scaled = optimizer.scale_loss(loss)
            optimizer.apply(tape.gradient(scaled, layer.trainable_variables), layer.trainable_variables)
        return {"loss": loss}


def fit(model: keras.Model, run_dir: Path, steps: int = 4, every: int = 1) -> precscope.Run:
    x, y = data(8 * steps)
    with precscope.profile(model, run_dir, every=every, **QUIET):
        model.fit(x, y[:, None].astype("float32"), batch_size=8, shuffle=False, verbose=0)
    return precscope.open_run(run_dir)


def weight_gradients(run: precscope.Run) -> set[tuple[str, str]]:
    return {(tensor.layer, tensor.name) for tensor in run.tensors if tensor.kind == "weight_gradient"}


@pytest.mark.parametrize("leads", ["an attribute", "the model's own"])
def test_each_of_several_optimizers_is_recorded(tmp_path: Path, leads: str) -> None:
    keras.utils.set_random_seed(1)
    second = keras.optimizers.SGD(0.01)
    model = Pair(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(), initial_scale=64.0), second)
    model.compile(second if leads == "the model's own" else "rmsprop", jit_compile=False)
    run = fit(model, tmp_path / "run")
    names = {(layer, name) for layer in ("left", "right") for name in ("kernel", "bias")}
    assert weight_gradients(run) == names
    assert {sample.loss_scale for sample in run.samples} == {None if leads == "the model's own" else 64.0}
    assert all(sample.applied and sample.loss for sample in run.samples)
    assert (run.loss_scales[-1].steps_applied, run.loss_scales[-1].steps_skipped) == (4, 0)
    assert not run.notices
    assert not [
        name for optimizer in model.optimizers_in_use for name in ("apply", "scale_loss") if name in vars(optimizer)
    ]


def test_a_loop_may_name_several_optimizers(tmp_path: Path) -> None:
    first, second = keras.optimizers.SGD(0.1), keras.optimizers.Adam()
    model = Pair(first, second)
    x, y = data(8)
    with precscope.profile(model, tmp_path / "run", optimizer=[second, first], every=1, **QUIET) as session:
        step = session.instrument(tf.function(lambda x, y: model.train_step((x, y))["loss"]))
        losses = [float(step(x, y[:, None].astype("float32"))) for _ in range(3)]
    run = precscope.open_run(tmp_path / "run")
    assert len(weight_gradients(run)) == 4
    assert [sample.loss for sample in run.samples] == pytest.approx([losses[s.step] for s in run.samples])
    with pytest.raises(precscope.SessionError, match=r"keras\.optimizers\.Optimizer or a list of them, received str"):
        precscope.profile(model, tmp_path / "other", optimizer=[first, "adam"])


def test_gradient_accumulation_is_counted_by_steps(tmp_path: Path) -> None:
    run = fit(mlp(optimizer=keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)), tmp_path / "run")
    assert run.loss_scales[-1].steps_applied == 4
    assert all(sample.applied for sample in run.samples)
    assert len(weight_gradients(run)) == 4


class Accumulating(keras.Model):
    """Adds gradients up over 16 batches, and calls its optimizer in a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(1)
        self.dense.build((None, 6))
        self.sums = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in self.dense.trainable_variables]
        self.calls = tf.Variable(0, trainable=False)

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
            scaled = self.optimizer.scale_loss(loss)
        for total, gradient in zip(self.sums, tape.gradient(scaled, self.dense.trainable_variables), strict=True):
            total.assign_add(gradient)
        self.calls.assign_add(1)
        tf.cond(self.calls % 16 == 0, self.update, lambda: tf.constant(0))
        return {"loss": loss}

    def update(self) -> Any:
        self.optimizer.apply(self.sums, self.dense.trainable_variables)
        for total in self.sums:
            total.assign(tf.zeros_like(total))
        return tf.constant(1)


def test_a_step_that_only_accumulates_is_no_skipped_step(tmp_path: Path) -> None:
    """Fifteen of sixteen steps update nothing: the training must not be told that it learns nothing."""
    model = Accumulating()
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.001)), "mse", jit_compile=False)
    model.optimizer.build(model.dense.trainable_variables)
    run = fit(model, tmp_path / "run", steps=32, every=8)
    assert [notice for notice in run.notices if notice.level != "info"] == []
    assert (run.loss_scales[-1].steps_applied, run.loss_scales[-1].steps_skipped) == (2, None)
    assert {sample.step for sample in run.samples} == {1, 8, 16, 24}


class TracedStep(keras.Model):
    """Its train step is a tf.function of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.dense(x)

    @tf.function
    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


def test_a_train_step_that_is_a_function_is_recorded_and_stays_clean(tmp_path: Path) -> None:
    model = TracedStep()
    model.compile("sgd", "mse", jit_compile=False)
    run = fit(model, tmp_path / "run")
    assert {t.kind for t in run.find(layer="dense")} == {"activation", "gradient", "weight", "weight_gradient"}
    assert len(run.samples) == 3
    assert not run.notices
    x, y = (tf.zeros([8, 6]), tf.zeros([8, 1]))
    operations = model.train_step.get_concrete_function((x, y)).graph.get_operations()
    assert not any("precscope" in operation.name for operation in operations)


def test_what_autograph_traces_is_not_converted_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """AutoGraph would convert PrecScope's own code, and tell the user of what it does not understand there."""
    model = mlp()
    model.optimizer.build(model.trainable_variables)

    @tf.function
    def step(x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(x, training=True)[:, 0])
        model.optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    with (
        caplog.at_level(logging.WARNING, "tensorflow"),
        precscope.profile(model, tmp_path / "run", every=1, **QUIET) as run,
    ):
        instrumented = run.instrument(step)
        for _ in range(3):
            instrumented(data(8)[0])
    assert not [record.message for record in caplog.records if "AutoGraph" in record.message]
    assert len(precscope.open_run(tmp_path / "run").samples) == 2


def test_layers_beside_the_graph_of_a_functional_model_are_recorded(tmp_path: Path) -> None:
    class Regularized(keras.Model):
        def __init__(self) -> None:
            inputs = keras.Input((6,))
            super().__init__(inputs, layers.Dense(1, name="body")(inputs))
            self.probe = layers.Dense(2)
            self.body = layers.Dense(2)  # its attribute is the name of another layer

        def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, *others: Any, **more: Any) -> Any:
            return super().compute_loss(x, y, y_pred, *others, **more) + ops.mean(self.body(self.probe(y_pred)))

    model = Regularized()
    model.compile("sgd", "mse", jit_compile=False)
    model.probe.build((None, 1))
    model.body.build((None, 2))
    run = fit(model, tmp_path / "run")
    layers_seen = {t.layer for t in run.tensors if t.kind == "gradient"}
    assert {"body", "body:own", "probe"} <= layers_seen
    assert "input_layer:0" not in {layer.id for layer in run.layers}


def test_where_nothing_fires_every_layer_says_why(tmp_path: Path) -> None:
    model = mlp()
    inner = tf.function(lambda x: model(x, training=True))
    x = np.zeros((8, 6), np.float32)
    inner(x)

    def loop() -> None:
        model.optimizer.build(model.trainable_variables)
        with precscope.profile(model, tmp_path / "run", every=1, **QUIET) as session:
            step = session.instrument(lambda: inner(x))
            for _ in range(3):
                step()

    with pytest.warns(PrecScopeWarning, match="no layer's output could be recorded"):
        loop()
    run = precscope.open_run(tmp_path / "run")
    assert [layer.id for layer in run.layers if layer.unseen is None or layer.gradient_unseen is None] == []
