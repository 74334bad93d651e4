"""Taps on models of every shape: which layers are seen, under which id, and why not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import precscope
from precscope.origin_records import DATA_ID
from precscope.probes.internals.layer_tree import walk_layers

if TYPE_CHECKING:
    from pathlib import Path

    from precscope.reader import Run

QUIET: dict[str, Any] = {"profile_steps": 0, "device_interval_s": 0.0, "reference": False}
layers = keras.layers


def record(model: keras.Model, x: Any, y: Any, path: Path, jit: bool = False, **options: Any) -> Run:
    """Train two steps, the second of them sampled."""
    model.compile("sgd", "mse", jit_compile=jit)
    with precscope.profile(model, path, every=1, **(QUIET | options)):
        for _ in range(2):
            model.train_on_batch(x, y)
    return precscope.open_run(path)


def seen(run: Run, kind: str) -> set[str]:
    """Return the layers of which tensors of a kind were recorded, the batch left aside."""
    return {tensor.layer for tensor in run.tensors if tensor.kind == kind} - {DATA_ID}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def test_nested_models_with_equal_names_are_told_apart(tmp_path: Path) -> None:
    def branch(name: str) -> keras.Model:
        inner = keras.Input((4,))
        return keras.Model(inner, layers.Dense(3, name="dense")(inner), name=name)

    inputs = keras.Input((4,))
    outputs = layers.Add(name="sum")([branch("left")(inputs), branch("right")(inputs)])
    run = record(keras.Model(inputs, outputs), noise(8, 4), noise(8, 3), tmp_path / "run")
    assert seen(run, "activation") == seen(run, "gradient") == {"left/dense", "right/dense", "sum"}
    assert set(run.layer("sum").inputs) == {"left/dense", "right/dense"} or run.layer("sum").inputs == ("left", "right")
    assert "last layer" in (run.layer("left").unseen or "")


def test_a_subclassed_model_is_named_by_its_attributes(tmp_path: Path) -> None:
    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = [layers.Dense(4), layers.Dense(4)]
            self.heads = {"main": layers.Dense(2)}

        def call(self, x: Any) -> Any:
            for block in self.blocks:
                x = keras.ops.relu(block(x))
            return self.heads["main"](x)

    run = record(Net(), noise(8, 4), noise(8, 2), tmp_path / "run")
    assert seen(run, "activation") == seen(run, "gradient") == {"blocks/0", "blocks/1", "heads/main"}
    assert [run.layer(f"blocks/{i}").order for i in (0, 1)] == [1, 2]  # the batch is before them
    assert seen(run, "weight_gradient") == {"blocks/0", "blocks/1", "heads/main"}


@pytest.mark.parametrize("jit", [False, True])
def test_a_shared_layer_has_one_row_for_all_its_calls(tmp_path: Path, jit: bool) -> None:
    shared = layers.Dense(3, name="shared")
    first, second = keras.Input((4,)), keras.Input((4,))
    outputs = layers.Subtract(name="difference")([shared(first), shared(second)])
    run = record(keras.Model([first, second], outputs), [noise(8, 4)] * 2, noise(8, 3), tmp_path / "run", jit)
    for kind in ("activation", "gradient"):
        (tensor,) = run.find(layer="shared", kind=kind)
        assert tensor.calls == 2
        assert run.statistics(0, tensor.index).count == 2 * 8 * 3


def test_every_output_of_a_layer_is_recorded(tmp_path: Path) -> None:
    class Split(keras.layers.Layer):
        def call(self, x: Any) -> dict[str, Any]:
            return {"double": 2 * x, "where": keras.ops.argmax(x, axis=-1), "half": x / 2}

    inputs = keras.Input((4,))
    parts = Split(name="split")(layers.Dense(4)(inputs))
    outputs = layers.Add()([parts["double"], parts["half"]])
    run = record(keras.Model(inputs, outputs), noise(8, 4), noise(8, 4), tmp_path / "run")
    assert len(run.find(layer="split", kind="activation")) == 2  # the integers are no float output
    assert len(run.find(layer="split", kind="gradient")) == 2


@pytest.mark.parametrize("jit", [False, True])
def test_a_cell_inside_a_loop_is_merged_over_time(tmp_path: Path, jit: bool) -> None:
    model = keras.Sequential([keras.Input((6, 2)), layers.LSTM(5, name="lstm"), layers.Dense(1)])
    run = record(model, noise(8, 6, 2), noise(8, 1), tmp_path / "run", jit)
    cell = run.find(layer="lstm/cell", kind="activation")
    assert cell
    assert all(run.statistics(0, t.index).count == 6 * 8 * 5 for t in cell)
    assert all("loop" in (t.note or "") for t in cell)
    assert "loop" in (run.layer("lstm/cell").gradient_unseen or "")
    assert run.find(layer="lstm", kind="gradient")
    assert {t.name for t in run.find(layer="lstm/cell", kind="weight_gradient")} == {
        "kernel",
        "recurrent_kernel",
        "bias",
    }


def test_a_cell_may_be_given_variables_as_its_state(tmp_path: Path) -> None:
    stateful = layers.LSTM(5, stateful=True, name="lstm")
    model = keras.Sequential([keras.Input(batch_shape=(8, 6, 2)), stateful, layers.Dense(1, name="head")])
    run = record(model, noise(8, 6, 2), noise(8, 1), tmp_path / "run")
    assert not [notice for notice in run.notices if notice.level != "info"]
    assert {"lstm", "lstm/cell", "head"} <= seen(run, "activation")


def test_sub_layers_without_a_keras_path_are_reached(tmp_path: Path) -> None:
    inputs = keras.Input((5, 8))
    attention = layers.MultiHeadAttention(2, 4, name="attention", dropout=0.1)
    outputs = layers.LayerNormalization(name="norm")(attention(inputs, inputs))
    model = keras.Model(inputs, outputs)
    ids = dict(walk_layers(model))
    assert ids["attention/_softmax"].path is None
    run = record(model, noise(4, 5, 8), noise(4, 5, 8), tmp_path / "run")
    assert {"attention", "attention/_query_dense", "attention/_softmax", "norm"} <= seen(run, "activation")


def test_sparse_gradients_are_recorded_by_their_rows(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((3,), dtype="int32"), layers.Embedding(10, 4), layers.Flatten()])
    x = np.array([[1, 2, 2], [3, 1, 1]])
    run = record(model, x, noise(2, 12), tmp_path / "run")
    (gradient,) = [t for t in run.tensors if t.kind == "weight_gradient"]
    assert run.statistics(0, gradient.index).count == 6 * 4
    assert "sparse" in (gradient.note or "")


def test_what_is_left_out_says_why(tmp_path: Path) -> None:
    inputs = keras.Input((4, 4, 1))
    x = layers.Conv2D(2, 3, name="conv")(inputs)
    x = layers.ReLU(name="relu")(x)
    x = layers.Flatten(name="flat")(x)
    model = keras.Model(inputs, layers.Dense(1, name="head")(x))
    run = record(model, noise(8, 4, 4, 1), noise(8, 1), tmp_path / "run", layers=["conv|relu|flat"])
    assert run.layer("flat").unseen == run.layer("flat").gradient_unseen == "it only rearranges its input"
    assert "among its input's" in (run.layer("relu").unseen or "")
    assert run.layer("relu").gradient_unseen is None
    assert run.layer("head").unseen == "not selected"
    assert seen(run, "weight") == {"conv"}


def test_kinds_can_be_switched_off(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    run = record(model, noise(8, 4), noise(8, 2), tmp_path / "run", gradients=False, weights=False)
    assert {tensor.kind for tensor in run.tensors} == {"activation"}


def test_a_users_own_function_is_not_recorded_inside_and_stays_clean(tmp_path: Path) -> None:
    class Inner(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__(name="inner")
            self.dense = layers.Dense(4)

        @tf.function
        def apply_dense(self, x: tf.Tensor) -> tf.Tensor:
            return self.dense(x)

        def call(self, x: tf.Tensor) -> tf.Tensor:
            return self.apply_dense(x)

    model = keras.Sequential([keras.Input((4,)), Inner(), layers.Dense(2, name="head")])
    run = record(model, noise(8, 4), noise(8, 2), tmp_path / "run")
    assert {"inner", "head"} <= seen(run, "activation")
    assert "inner/dense" not in seen(run, "activation")
    assert run.layer("inner/dense").unseen is not None
    inner = model.layers[0]
    graph = inner.apply_dense.get_concrete_function(tf.TensorSpec([8, 4], tf.float32)).graph
    assert not any("precscope" in operation.name for operation in graph.get_operations())


def test_a_loss_finds_the_logits_behind_a_float32_softmax_as_without_taps(tmp_path: Path) -> None:
    """Of probabilities below 1e-7 Keras' loss keeps nothing; of the logits behind a softmax it keeps all."""

    def train(watched: bool) -> float:
        keras.utils.set_random_seed(3)
        sure = keras.initializers.RandomNormal(stddev=60.0, seed=1)
        model = keras.Sequential([keras.Input((4,)), layers.Dense(3, "softmax", kernel_initializer=sure)])
        model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
        x, y = noise(8, 4), np.arange(8) % 3
        if not watched:
            return [model.train_on_batch(x, y) for _ in range(2)][-1]
        with precscope.profile(model, tmp_path / "run", every=1, **QUIET):
            return [model.train_on_batch(x, y) for _ in range(2)][-1]

    assert train(watched=True) == train(watched=False)
    run = precscope.open_run(tmp_path / "run")
    assert len(run.find(kind="activation")) == 2  # the batch and the probabilities
    assert "logits" in (run.layers[-1].gradient_unseen or "")
