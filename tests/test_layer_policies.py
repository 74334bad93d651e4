"""Setting the dtype policies of layers of a built model, and restoring them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from precscope.errors import PolicyError
from precscope.probes.flip_check import watch_flips
from precscope.probes.internals.dtype_policies import own_policy
from precscope.probes.layer_policies import (
    flippable_layers,
    layer_policies,
    model_layers,
    set_layer_policies,
    whole_model,
    with_sublayers,
)
from tests.models import mlp


class Block(keras.layers.Layer):
    """A custom layer that owns two: one without a path."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = keras.layers.Dense(4, dtype=self.dtype_policy)
        self.soft = keras.layers.Softmax(dtype=self.dtype_policy)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.soft(self.dense(x))


class Subclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.blocks = [Block(dtype=self.dtype_policy), Block(dtype=self.dtype_policy)]
        self.attention = keras.layers.MultiHeadAttention(1, 2, dropout=0.1, dtype=self.dtype_policy)

    def call(self, x, training=None):
        for block in self.blocks:
            x = block(x)
        return self.attention(x, x, training=training)


def compute_dtypes(model):
    return {layer_id: layer.compute_dtype for layer_id, layer in model_layers(model).items()}


def subclassed(policy="mixed_float16"):
    model = Subclassed(dtype=policy)
    model(np.zeros((1, 3, 4), np.float32))
    return model


def test_a_layer_computes_in_the_policy_that_is_set_until_the_context_ends():
    model = mlp("mixed_float16")
    x = np.ones((2, 6), np.float32)
    before = [layer._dtype_policy for layer in model.layers]
    with layer_policies(model, {"head": "float32"}):
        assert model(x).dtype == tf.float32
        assert model.get_layer("hidden").compute_dtype == "float16"
    assert model(x).dtype == tf.float16
    assert [layer._dtype_policy for layer in model.layers] == before


def test_an_exception_restores_too():
    model = mlp("mixed_float16")
    with pytest.raises(ZeroDivisionError), layer_policies(model, {"head": "float32"}):
        raise ZeroDivisionError
    assert model.get_layer("head").compute_dtype == "float16"


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_whole_subclassed_model_computes_what_a_float32_model_would(policy):
    keras.utils.set_random_seed(1)
    model = subclassed(policy)
    twin = subclassed("float32")
    twin.set_weights(model.get_weights())
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32) * 1.0001
    expected = twin(x).numpy()
    with layer_policies(model, whole_model(model, "float32")):
        np.testing.assert_array_equal(model(x).numpy(), expected)
        assert set(compute_dtypes(model).values()) == {"float32"}
    assert set(compute_dtypes(model).values()) == {policy.removeprefix("mixed_")}


def test_sub_layers_without_a_path_are_reached():
    model = subclassed()
    softmax = model.attention._softmax
    assert softmax.path is None
    with layer_policies(model, dict.fromkeys(with_sublayers(model, ["attention"]), "float32")):
        assert softmax.compute_dtype == "float32"
        assert model.attention._query_dense.compute_dtype == "float32"
        assert model.blocks[0].soft.compute_dtype == "float16"
    with layer_policies(model, {"attention/_softmax": "float32"}):
        assert softmax.compute_dtype == "float32"
        assert model.attention._dropout_layer.compute_dtype == "float16"
        assert model(np.ones((1, 3, 4), np.float32), training=True).dtype == tf.float16


def test_a_pin_covers_what_the_layer_owns_and_nothing_beside_it():
    assert with_sublayers(subclassed(), ["blocks/1"]) == ("blocks/1", "blocks/1/dense", "blocks/1/soft")


def test_a_shared_layer_is_one_layer():
    shared = keras.layers.Dense(3, name="shared", dtype="mixed_float16")
    inputs = keras.Input((3,))
    inner = keras.Sequential([keras.Input((3,)), shared], name="inner")
    model = keras.Model(inputs, shared(inner(inputs)))
    ids = [layer_id for layer_id, layer in model_layers(model).items() if layer is shared]
    assert ids == ["inner/shared"]
    assert with_sublayers(model, ["inner"]) == ("inner", "inner/shared")
    with layer_policies(model, {"inner/shared": "float32"}):
        assert model(np.ones((1, 3))).dtype == tf.float32


def test_an_owner_of_a_shared_layer_covers_it_wherever_its_id_lies():
    shared = keras.layers.Dense(3, name="shared", dtype="mixed_float16")
    inputs = keras.Input((3,))
    inner = keras.Sequential([keras.Input((3,)), shared], name="inner")
    model = keras.Model(inputs, inner(shared(inputs)))
    assert with_sublayers(model, ["inner"]) == ("inner", "shared")


def test_a_pure_float16_layer_with_variables_is_refused_and_one_without_is_not():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(3, name="pure", dtype="float16"),
            keras.layers.Activation("softmax", name="soft", dtype="float16"),
        ]
    )
    can, cannot = flippable_layers(model)
    assert "soft" in can
    assert set(cannot) == {"pure"}
    with pytest.raises(PolicyError, match=r"'pure' cannot be given .* variables are float16.*mixed_float16"):
        set_layer_policies(model, {"soft": "float32", "pure": "float32"})
    assert model.get_layer("soft").compute_dtype == "float16"  # nothing was changed


def test_unknown_layers_and_policies_are_errors_that_name_them():
    model = mlp()
    with pytest.raises(PolicyError, match=r"no layer 'heads'\. Did you mean 'head'"):
        set_layer_policies(model, {"heads": "float32"})
    with pytest.raises(PolicyError, match="Keras knows no dtype policy 'mixed_float61' \\(for layer 'head'\\)"):
        set_layer_policies(model, {"head": "mixed_float61"})
    with pytest.raises(PolicyError, match="no layer 'blocks'"):
        with_sublayers(model, ["blocks"])


def test_a_quantized_or_integer_layer_is_left_alone():
    model = keras.Sequential([keras.Input((2,), dtype="int32"), keras.layers.Embedding(5, 3, name="table")])
    model.add(keras.layers.Dense(2, name="quantized"))
    model.get_layer("quantized").quantize("int8")
    can, cannot = flippable_layers(model, "mixed_float16")
    assert "quantized" in cannot
    assert "table" in can


def test_one_layers_policy_in_a_shared_map_leaves_the_map_alone():
    policies = keras.dtype_policies.DTypePolicyMap(default_policy="mixed_float16")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, name="a"), keras.layers.Dense(3, name="b")])
    for layer in model.layers:
        layer._dtype_policy = policies
    with layer_policies(model, {"a": "float32"}):
        assert compute_dtypes(model) == {"(model)": "float32", "a": "float32", "b": "float16"}
    assert len(policies) == 0
    assert compute_dtypes(model) == {"(model)": "float32", "a": "float16", "b": "float16"}
    assert own_policy(model.get_layer("a")).name == "mixed_float16"


@pytest.mark.parametrize("given", [False, True])
def test_a_normalization_layer_gets_the_digits_of_its_constants_back(given):
    mean, variance = np.array([1000.3, -3.3]), np.array([4.1, 9.7])
    if given:
        layer = keras.layers.Normalization(mean=mean, variance=variance, dtype="mixed_float16", name="norm")
    else:
        layer = keras.layers.Normalization(dtype="mixed_float16", name="norm")
    model = keras.Sequential([keras.Input((2,)), layer])
    if not given:
        layer.adapt(np.array([[1000.3, -3.3], [1002.9, -9.1]], np.float32))
    kept = layer.mean
    assert kept.dtype == tf.float16
    x = np.array([[1001.7, -5.4]], np.float32)
    with layer_policies(model, {"norm": "float32"}):
        assert layer.mean.dtype == tf.float32
        expected = np.array([1000.3 if given else 1001.6, -3.3 if given else -6.2], np.float32)
        np.testing.assert_allclose(layer.mean.numpy().ravel(), expected, rtol=1e-6)  # rounding of the two-value mean
        assert model(x).dtype == tf.float32
    assert layer.mean is kept


def test_recurrent_layers_flip_with_their_cells():
    model = keras.Sequential(
        [
            keras.Input((4, 2)),
            keras.layers.Bidirectional(keras.layers.LSTM(3, return_sequences=True), name="both"),
            keras.layers.RNN(keras.layers.StackedRNNCells([keras.layers.GRUCell(2), keras.layers.SimpleRNNCell(2)])),
        ]
    )
    x = np.random.default_rng(0).normal(size=(2, 4, 2)).astype(np.float32)
    in_float32 = model(x).numpy()
    with layer_policies(model, whole_model(model, "mixed_bfloat16")):
        assert set(compute_dtypes(model).values()) == {"bfloat16"}
        assert model(x).dtype == tf.bfloat16
        with layer_policies(model, whole_model(model, "float32")):
            np.testing.assert_array_equal(model(x).numpy(), in_float32)
    assert set(compute_dtypes(model).values()) == {"float32"}


class NotedDtype(keras.layers.Layer):
    """Remembers the dtype it was made with, as many custom layers do."""

    def __init__(self, **options):
        super().__init__(**options)
        self.noted = self.compute_dtype

    def call(self, x):
        return keras.ops.cast(x, self.noted) * 2


class Constant(keras.layers.Layer):
    def call(self, x):
        return tf.matmul(x, tf.ones((2, 2), tf.float16))


def test_a_layer_that_keeps_its_dtype_shows_in_its_output():
    dense = keras.layers.Dense(2, name="dense")
    model = keras.Sequential([keras.Input((2,)), NotedDtype(name="noted", dtype="mixed_float16"), dense])
    with layer_policies(model, whole_model(model, "float32")), watch_flips(model_layers(model)) as watch:
        tf.function(lambda x: model(x)).get_concrete_function(tf.TensorSpec((1, 2)))
    assert set(watch.unflipped) == {"noted"}
    assert "its output is float16 although its policy computes in float32" in watch.unflipped["noted"]
    assert "call" not in vars(dense)


def test_the_layer_that_fails_in_another_policy_is_named_not_its_owner():
    inner = keras.Sequential([keras.Input((2,)), Constant(name="constant", dtype="mixed_float16")], name="inner")
    model = keras.Sequential([keras.Input((2,)), inner])
    with (
        layer_policies(model, whole_model(model, "float32")),
        watch_flips(model_layers(model)) as watch,
        pytest.raises(Exception, match=r"(?i)matmul"),
    ):
        tf.function(lambda x: model(x)).get_concrete_function(tf.TensorSpec((1, 2)))
    assert set(watch.unflipped) == {"inner/constant"}
    assert "it failed in that policy" in watch.unflipped["inner/constant"]
