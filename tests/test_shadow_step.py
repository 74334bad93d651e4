"""Shadow steps: what they give, and that they leave nothing behind."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig
from tensorflow.python.eager import context

from precscope.probes.internals.tf_functions import optimized_once
from precscope.probes.layer_policies import whole_model
from precscope.probes.observed_layers import observed_layers
from precscope.probes.reading import TensorKey
from precscope.probes.shadow_step import ShadowStep
from tests.models import data, mlp

layers = keras.layers


def network(policy: str = "mixed_float16", **compile_arguments: Any) -> keras.Model:
    """A model with every kind of state: BatchNorm, dropout, metrics, Adam, a dynamic loss scale."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, name="hidden", dtype=policy),
            layers.BatchNormalization(name="norm", dtype=policy),
            layers.Dropout(0.3, name="drop", dtype=policy),
            layers.Dense(2, name="head", dtype="float32"),
        ]
    )
    optimizer: Any = keras.optimizers.Adam(0.01)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(**({"optimizer": optimizer, "loss": loss, "metrics": ["accuracy"]} | compile_arguments))
    return model


def state_of(model: keras.Model) -> list[np.ndarray]:
    """Copies of everything that a step could change; a view of a variable would change with it."""
    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    return [np.array(variable.numpy(), copy=True) for variable in variables]


def assert_same(before: list[np.ndarray], after: list[np.ndarray]) -> None:
    for first, second in zip(before, after, strict=True):
        assert first.tobytes() == second.tobytes()


@pytest.fixture
def batch() -> tuple[Any, Any]:
    x, y = data(16)
    return tf.constant(x), tf.constant(y)


@pytest.mark.parametrize("jit", [False, True])
def test_nothing_is_changed(batch: Any, jit: bool):
    model = network(jit_compile=False)
    model.train_on_batch(*batch)
    before, function, policies = state_of(model), model.train_function, [x.dtype_policy.name for x in model.layers]
    step = ShadowStep(model, model.optimizer, policies=whole_model(model, "float32"), jit_compile=jit)
    first, second = step.run(batch), step.run(batch)
    assert_same(before, state_of(model))
    assert model.train_function is function
    assert [layer.dtype_policy.name for layer in model.layers] == policies
    assert not {"apply", "scale_loss"} & (vars(model.optimizer).keys() | vars(model.optimizer.inner_optimizer).keys())
    assert not any("call" in vars(layer) for layer in model.layers)
    assert not tf.config.functions_run_eagerly()
    assert first.loss == second.loss  # the same random numbers
    assert step.traces == 1
    assert len(first.gradients) == 6


def test_the_gradients_are_those_of_the_training(batch: Any):
    model = mlp(optimizer=keras.optimizers.SGD(1.0))
    model.train_on_batch(*batch)
    result = ShadowStep(model, model.optimizer).run(batch)
    before = [variable.numpy().copy() for variable in model.trainable_variables]
    model.train_on_batch(*batch)
    kernel = result.gradients[TensorKey("hidden", "weight_gradient", "kernel")]
    np.testing.assert_allclose(before[0] - model.trainable_variables[0].numpy(), kernel, rtol=1e-5, atol=1e-7)


def test_the_loss_scale_multiplies_the_gradients(batch: Any):
    model = network("mixed_float16", jit_compile=False)
    model.train_on_batch(*batch)
    step = ShadowStep(model, model.optimizer, policies=whole_model(model, "float32"))
    plain, scaled, settled = step.run(batch, loss_scale=1.0), step.run(batch, loss_scale=1024.0), step.run(batch)
    assert (plain.loss_scale, scaled.loss_scale, settled.loss_scale) == (1.0, 1024.0, 2.0**15)
    assert plain.loss == scaled.loss
    for key, gradient in plain.gradients.items():
        assert (gradient.numpy() * 1024 == scaled.gradients[key].numpy()).all()  # a power of 2 is exact in float32


def test_dropout_draws_the_same_mask_under_both_policies(batch: Any):
    model = network("mixed_float16", jit_compile=False)
    model.train_on_batch(*batch)

    def mask_under(policy: str) -> np.ndarray:
        def taps(trace: Any) -> Any:
            return observed_layers({"drop": model.get_layer("drop")}, trace, lambda key, call, x: trace.keep(key, x))

        result = ShadowStep(model, model.optimizer, policies=whole_model(model, policy), taps=taps).run(batch)
        dropped = result.kept[TensorKey("drop", "activation", "0")]
        assert dropped.dtype.name == ("float32" if policy == "float32" else "float16")
        return dropped.numpy() == 0

    low, full = mask_under("mixed_float16"), mask_under("float32")
    assert (low == full).all()
    assert low.any()
    assert not low.all()


def test_layers_are_observed_with_their_gradients(batch: Any):
    model = network("mixed_float16", jit_compile=False)
    model.train_on_batch(*batch)
    seen = []

    def taps(trace: Any) -> Any:
        def observe(key: TensorKey, call: int, tensor: Any) -> None:
            seen.append((key, call))
            trace.keep((key, call), tensor)

        return observed_layers({layer.name: layer for layer in model.layers}, trace, observe)

    result = ShadowStep(model, model.optimizer, taps=taps).run(batch, loss_scale=8.0)
    names = ["hidden", "norm", "drop", "head"]
    assert [key.layer for key, _ in seen] == [*names, *reversed(names)]
    assert set(result.kept) == set(seen)
    head = result.kept[(TensorKey("head", "gradient", "0"), 0)].numpy()
    bias = result.gradients[TensorKey("head", "weight_gradient", "bias")].numpy()
    np.testing.assert_allclose(head.sum(0), bias, rtol=1e-5)


def test_a_custom_loop_is_followed_and_functions_of_its_own_keep_no_trace(batch: Any):
    model = network("mixed_float16")
    optimizer, loss_of = model.optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    counter, last_loss = tf.Variable(0), tf.Variable(-1.0)

    @tf.function
    def gradients_of(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            scaled = optimizer.scale_loss(loss_of(y, model(x, training=True)))
        return tape.gradient(scaled, model.trainable_variables)

    @tf.function
    def train_step(x: Any, y: Any) -> None:
        counter.assign_add(1)
        last_loss.assign(tf.reduce_sum(x), read_value=False)
        optimizer.apply_gradients(zip(gradients_of(x, y), model.trainable_variables, strict=True))

    train_step(*batch)
    before, traced = state_of(model), gradients_of.experimental_get_tracing_count()
    half = [tensor[:8] for tensor in batch]  # another shape: the inner function would be traced for it
    result = ShadowStep(model, optimizer, step=train_step).run(*half)
    assert_same(before, state_of(model))
    assert counter.numpy() == 1
    assert last_loss.numpy() == tf.reduce_sum(batch[0])
    assert gradients_of.experimental_get_tracing_count() == traced
    assert len(result.gradients) == 6
    assert result.loss is not None


def test_a_step_that_fails_changes_nothing(batch: Any):
    model = network(jit_compile=False)
    model.train_on_batch(*batch)
    before = state_of(model)

    def failing(data: Any) -> None:
        model.train_step(data)
        tf.debugging.assert_less(tf.reduce_max(data[0]), -1e9, "as planned")

    with pytest.raises(tf.errors.InvalidArgumentError, match="as planned"):
        ShadowStep(model, model.optimizer, step=failing).run(batch)
    assert_same(before, state_of(model))


def test_weights_that_a_layer_changes_in_its_call_are_put_back(batch: Any):
    class Restless(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.gain = self.add_weight(shape=(), initializer="ones", name="gain")

        def call(self, x: Any) -> Any:
            self.gain.assign(self.gain * 1.5)
            return x * self.gain

    model = keras.Sequential([keras.Input((6,)), Restless(), layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    model.train_on_batch(*batch)
    before = state_of(model)
    ShadowStep(model, model.optimizer).run(batch)
    assert_same(before, state_of(model))


def test_a_float32_softmax_stays_what_the_loss_looks_for(batch: Any):
    """Keras' loss takes the logits from the softmax before it: a tap between the two would be another loss."""
    model = mlp("float32")
    model.train_on_batch(*batch)
    model.layers[-1].kernel.assign(model.layers[-1].kernel * 1000.0)  # probabilities of 0, whose logarithm is cut off

    def taps(trace: Any) -> Any:
        def observe(key: TensorKey, call: int, tensor: Any) -> None:
            trace.keep(key, tensor)

        return observed_layers({layer.name: layer for layer in model.layers}, trace, observe)

    observed, plain = (
        ShadowStep(model, model.optimizer, taps=taps).run(batch),
        ShadowStep(model, model.optimizer).run(batch),
    )
    assert observed.loss == plain.loss
    assert TensorKey("head", "activation", "0") in observed.kept
    assert TensorKey("head", "gradient", "0") not in observed.kept


@pytest.mark.parametrize("policy", ["mixed_float16", "float32"])
def test_one_pass_of_the_graph_optimizer_gives_the_same_numbers_as_two(batch: Any, policy: str, monkeypatch: Any):
    model = network()
    policies = whole_model(model, policy)
    options_before = context.context().function_call_options
    once = ShadowStep(model, model.optimizer, policies=policies).run(batch)
    assert context.context().function_call_options is options_before
    monkeypatch.setattr("precscope.probes.shadow_step.optimized_once", nullcontext)
    twice = ShadowStep(model, model.optimizer, policies=policies).run(batch)
    assert once.loss == twice.loss
    for key, gradient in twice.gradients.items():
        assert once.gradients[key].numpy().tobytes() == gradient.numpy().tobytes(), key


def test_the_graph_optimizer_is_as_before_after_a_call_that_fails():
    before = context.context().function_call_options

    @optimized_once()
    def fail() -> None:
        config = config_pb2.ConfigProto.FromString(context.context().function_call_options.config_proto_serialized)
        assert config.graph_options.rewrite_options.meta_optimizer_iterations == RewriterConfig.ONE
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert context.context().function_call_options is before
