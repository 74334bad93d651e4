"""Policies applied to built models and to models built in a scope: traced anew, trained on, saved and loaded."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import precscope
from precscope.errors import PolicyError
from precscope.policy import KeptLayer, MadeFor, OptimizerNeeds, Pin, Policy
from precscope.policy_file import write_policy
from precscope.probes.internals.dtype_policies import set_own_policy
from precscope.probes.internals.layer_tree import walk_layers
from precscope.probes.internals.optimizers import is_dynamic
from precscope.probes.layer_policies import model_layers
from tests.models import data, mlp


def policy_for(model, *pins, default="mixed_float16", kept=(), scale=2.0**15):
    layers = {name: type(layer).__name__ for name, layer in walk_layers(model)}
    needs = OptimizerNeeds(True, scale) if default == "mixed_float16" else OptimizerNeeds()
    made_for = MadeFor(model.name, type(model).__name__, "run", None, layers)
    return Policy(default, made_for, tuple(map(Pin, pins)), tuple(KeptLayer(*entry) for entry in kept), needs)


def dtypes(model):
    return {
        name: layer.compute_dtype
        for name, layer in model_layers(model).items()
        if not isinstance(layer, keras.layers.InputLayer)
    }


def attention_model(dropout=0.1):
    inputs = keras.Input((4, 8), name="tokens")
    x = keras.layers.MultiHeadAttention(2, 4, dropout=dropout, name="attention")(inputs, inputs)
    inner = keras.Sequential([keras.Input((4, 8)), keras.layers.Dense(6, name="wide")], name="inner")
    x = keras.layers.Bidirectional(keras.layers.SimpleRNN(3), name="both")(inner(x))
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x), name="attentive")
    model.compile("adam", "mse", jit_compile=False)
    return model


def attention_data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(8, 4, 8)).astype(np.float32), rng.normal(size=(8, 2)).astype(np.float32)


def test_a_model_that_was_fitted_computes_in_the_policy_from_the_next_fit_on(tmp_path):
    model = mlp("mixed_float16")
    x, y = data()
    model.fit(x, y, verbose=0)
    file = write_policy(policy_for(model, "head"), tmp_path / "policy.yaml")
    applied = precscope.apply_policy(model, file)
    assert applied.changed == {"(model)": "mixed_float16", "head": "float32"}
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(logs["loss"])

    assert model.train_function is None
    model.fit(x, y, verbose=0, callbacks=[Look()])
    assert np.isfinite(seen).all()
    assert model.predict(x, verbose=0).dtype == np.float32
    assert dtypes(model) == {"(model)": "float16", "hidden": "float16", "drop": "float16", "head": "float32"}


def test_the_optimizer_is_wrapped_and_goes_on_where_it_was():
    model = mlp("float32")
    x, y = data()
    model.fit(x, y, verbose=0)
    inner, weights = model.optimizer, model.get_weights()
    slots = [variable.numpy() for variable in inner.variables]
    applied = precscope.apply_policy(model, policy_for(model, "head", scale=1024.0))
    assert applied.wrapped
    assert applied.optimizer is model.optimizer
    assert model.optimizer.inner_optimizer is inner
    assert int(model.optimizer.iterations.numpy()) == 2
    assert float(model.optimizer.dynamic_scale.numpy()) == 1024.0
    for before, variable in zip(slots, inner.variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), before)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(after, before)
    model.fit(x, y, verbose=0)
    assert int(model.optimizer.iterations.numpy()) == 4
    assert "wrapped in a LossScaleOptimizer" in str(applied)


def test_a_wrapped_optimizer_keeps_a_scale_that_has_moved_and_takes_one_before_it_began():
    model = mlp("mixed_float16")
    model.optimizer.build(model.trainable_variables)
    assert "; the loss scale begins at 256." in str(
        precscope.apply_policy(model, policy_for(model, "head", scale=256.0))
    )
    assert float(model.optimizer.dynamic_scale.numpy()) == 256.0
    model.optimizer.dynamic_scale.assign(64.0)
    again = precscope.apply_policy(model, policy_for(model, "head"))
    assert (again.wrapped, again.initial_scale) == (False, None)
    assert float(model.optimizer.dynamic_scale.numpy()) == 64.0


def test_bfloat16_and_float32_need_no_loss_scale():
    model = mlp("float32")
    assert not precscope.apply_policy(model, policy_for(model, default="mixed_bfloat16")).wrapped
    assert dtypes(model)["hidden"] == "bfloat16"


def test_a_custom_loop_gets_its_optimizer_wrapped():
    model = mlp("float32")
    optimizer = keras.optimizers.SGD()
    applied = precscope.apply_policy(model, policy_for(model), optimizer=optimizer)
    assert applied.optimizer.inner_optimizer is optimizer
    assert not is_dynamic(model.optimizer)


def test_a_saved_model_keeps_policies_optimizer_and_learning_state(tmp_path):
    """Also under another global policy, and of softmax and dropout in attention, which have no path."""
    model = attention_model()
    x, y = attention_data()
    model.fit(x, y, verbose=0)
    applied = precscope.apply_policy(model, policy_for(model, "attention/_softmax", "inner/wide", "both", "head"))
    assert applied.not_saved == ()
    model.fit(x, y, verbose=0)
    model.optimizer.dynamic_scale.assign(4096.0)
    expected = dtypes(model)
    assert expected["attention/_softmax"] == "float32"
    assert expected["attention/_query_dense"] == "float16"
    assert expected["both/forward_layer/cell"] == "float32"
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    policies = {name: dtype for name, dtype in dtypes(loaded).items() if name not in ("(model)", "inner")}
    assert policies == {name: expected[name] for name in policies}
    assert len(policies) == len(expected) - 2
    assert is_dynamic(loaded.optimizer)
    assert float(loaded.optimizer.dynamic_scale.numpy()) == 4096.0
    assert int(loaded.optimizer.iterations.numpy()) == int(model.optimizer.iterations.numpy()) == 2
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    loaded.fit(x, y, verbose=0)


def test_a_configuration_and_a_clone_carry_the_policies():
    model = attention_model()
    precscope.apply_policy(model, policy_for(model, "attention/_softmax"))
    for copy in (keras.Model.from_config(model.get_config()), keras.models.clone_model(model)):
        assert copy.get_layer("attention")._softmax.compute_dtype == "float32"
        assert copy.get_layer("attention")._query_dense.compute_dtype == "float16"
        assert copy.get_layer("head").compute_dtype == "float16"


def test_applying_twice_changes_nothing_more_and_another_policy_takes_its_place():
    model = attention_model()
    policy = policy_for(model, "attention/_softmax")
    precscope.apply_policy(model, policy)
    assert precscope.apply_policy(model, policy).changed == {}
    precscope.apply_policy(model, policy_for(model, "attention"))
    assert {dtype for name, dtype in dtypes(model).items() if name.startswith("attention")} == {"float32"}
    precscope.apply_policy(model, policy_for(model))
    assert set(dtypes(model).values()) == {"float16"}
    clone = keras.models.clone_model(model)
    assert clone.get_layer("attention")._softmax.compute_dtype == "float16"


def test_a_users_own_float32_head_is_not_lowered():
    model = mlp("mixed_float16")
    head = model.get_layer("head")
    set_own_policy(head, keras.DTypePolicy("float32"))
    precscope.apply_policy(model, policy_for(model, "hidden", kept=[("head", "float32")]))
    assert dtypes(model)["head"] == "float32"


class Block(keras.layers.Layer):
    """A user's layer whose configuration says nothing of the layers that it owns."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = keras.layers.Dense(4)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)


class Nested(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.second = Block(), Block()

    def build(self, shape):
        self.first.build(shape)
        self.second.build(shape)

    def call(self, x):
        return self.second(self.first(x))


def test_what_a_saved_model_cannot_hold_is_told_and_loading_in_a_scope_mends_it(tmp_path):
    model = Nested()
    model(np.ones((1, 4), np.float32))
    policy = policy_for(model, "second")
    applied = precscope.apply_policy(model, policy)
    assert set(applied.not_saved) == {"second", "second/dense"}
    assert "load it inside precscope.policy_scope" in str(applied)
    expected = dtypes(model)
    model.save(tmp_path / "model.keras")
    custom = {"Block": Block, "Nested": Nested}
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects=custom)
    assert dtypes(loaded) != expected
    with precscope.policy_scope(policy) as scope:
        loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects=custom)
    assert scope.model is loaded
    assert dtypes(loaded) == expected


def test_shared_layers_and_owners_elsewhere_are_covered():
    shared = keras.layers.Dense(3, name="shared")
    inputs = keras.Input((3,))
    inner = keras.Sequential([keras.Input((3,)), shared], name="inner")
    model = keras.Model(inputs, inner(shared(inputs)))
    precscope.apply_policy(model, policy_for(model, "inner"))
    assert shared.compute_dtype == "float32"


# What is refused, with the model untouched


def refuses(model, policy, message):
    before = [(layer, layer._dtype_policy) for layer in model_layers(model).values()]
    optimizer, function = model.optimizer, model.train_function
    with pytest.raises(PolicyError, match=message):
        precscope.apply_policy(model, policy)
    assert [(layer, layer._dtype_policy) for layer in model_layers(model).values()] == before
    assert model.optimizer is optimizer
    assert model.train_function is function


def test_a_policy_for_another_model_is_refused():
    refuses(mlp(), policy_for(attention_model(), "head"), "made for another model: 'attentive'")
    refuses(mlp(), policy_for(mlp(), "haed"), "'haed' matches no layer of the model. Did you mean 'head'")
    refuses(mlp(), policy_for(mlp(), "head", default="mixed_float8"), "no dtype policy 'mixed_float8'")
    with pytest.raises(PolicyError, match=r"expects a keras\.Model, received Dense"):
        precscope.apply_policy(keras.layers.Dense(1), policy_for(mlp()))


def test_a_pure_float16_layer_cannot_be_pinned_and_is_kept_where_the_policy_says_so():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(3, name="a", dtype="mixed_float16"),
            keras.layers.Dense(3, name="pure", dtype="float16"),
        ]
    )
    model.compile("sgd", "mse")
    refuses(model, policy_for(model, "pure"), "'pure' cannot be given the policy 'float32': its variables are float16")
    refuses(model, policy_for(model, "a"), "'pure' cannot be given the policy 'mixed_float16'")
    precscope.apply_policy(model, policy_for(model, "a", kept=[("pure", "float16")]))
    assert dtypes(model) == {"(model)": "float16", "a": "float32", "pure": "float16"}


def test_a_sub_layer_of_a_pin_that_cannot_follow_stays_and_is_told():
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, name="pure", dtype="float16")], name="inner")
    model = keras.Sequential([keras.Input((3,)), inner, keras.layers.Dense(1, name="head")])
    applied = precscope.apply_policy(model, policy_for(model, "inner", kept=[("inner/pure", "float16")]))
    assert set(applied.left) == {"inner/pure"}
    assert "'inner/pure' stayed" in str(applied)


def test_a_failure_half_way_undoes_everything(monkeypatch):
    model = mlp("float32")
    policy = policy_for(model, "head")

    def fails(*arguments):
        raise RuntimeError("no memory for slots")

    monkeypatch.setattr(keras.optimizers.LossScaleOptimizer, "build", fails)
    model.optimizer.build(model.trainable_variables)
    before = dtypes(model)
    with pytest.raises(RuntimeError, match="no memory"):
        precscope.apply_policy(model, policy)
    assert dtypes(model) == before


# Building under a policy


def named_model():
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, name="hidden"), keras.layers.Dense(8), keras.layers.Dense(2)]
    )
    model.compile("adam", "mse")
    return model


def test_a_model_built_in_a_scope_follows_the_policy_whatever_keras_numbers_its_layers():
    first = named_model()
    last = list(model_layers(first))[-1]
    policy = policy_for(first, last, scale=512.0)
    with precscope.policy_scope(policy) as scope:
        model = named_model()
    assert scope.model is model
    assert list(dtypes(model).values()) == ["float16", "float16", "float16", "float32"]
    assert is_dynamic(model.optimizer)
    assert model.optimizer.initial_scale == 512.0
    assert keras.config.dtype_policy().name == "float32"
    model.fit(*(np.zeros((4, n), np.float32) for n in (6, 2)), verbose=0)


class Noted(keras.layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.noted = self.compute_dtype

    def call(self, x):
        return keras.ops.cast(x, self.noted)


def test_a_layer_has_its_policy_when_it_is_made():
    def build():
        return keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="a"), Noted(name="noted")])

    with precscope.policy_scope(policy_for(build(), "noted")):
        model = build()
    assert model.get_layer("noted").noted == "float32"
    assert model(np.ones((1, 2))).dtype == tf.float32


def test_a_scope_without_the_model_or_with_two_is_an_error_and_restores():
    policy = policy_for(mlp(), "head")
    initialize = keras.layers.Layer.__init__
    with pytest.raises(PolicyError, match="No model was built inside"), precscope.policy_scope(policy):
        pass
    with pytest.raises(PolicyError, match="2 models were built inside"), precscope.policy_scope(policy):
        mlp(), mlp()
    with pytest.raises(PolicyError, match="made for another model"), precscope.policy_scope(policy):
        attention_model()
    with pytest.raises(ZeroDivisionError), precscope.policy_scope(policy):
        raise ZeroDivisionError
    assert keras.config.dtype_policy().name == "float32"
    assert keras.layers.Layer.__init__ is initialize


def test_an_unbuilt_model_is_told():
    model = Nested()
    model(np.ones((1, 4), np.float32))
    policy = policy_for(model, "second/dense")

    class Later(keras.Model):
        def build(self, shape):
            self.first, self.second = Block(), Block()

    with pytest.raises(PolicyError, match="not built yet: call it on a batch"):
        precscope.apply_policy(Later(), policy)


def test_a_scope_loads_a_saved_model_with_its_optimizer(tmp_path):
    model = attention_model()
    policy = policy_for(model, "attention/_softmax", "head")
    model.save(tmp_path / "float32.keras")
    with precscope.policy_scope(policy):
        loaded = keras.models.load_model(tmp_path / "float32.keras")
    assert dtypes(loaded)["attention/_softmax"] == "float32"
    assert dtypes(loaded)["attention/_query_dense"] == "float16"
    assert is_dynamic(loaded.optimizer)
