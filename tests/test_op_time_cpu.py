"""Op time of CPU traces that are made here, of a model whose layers' names are hard to tell apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest

from precscope.layer_time import layer_times
from precscope.probes.layer_paths import paths_of_layers
from precscope.probes.op_time import op_records, read_trace
from precscope.probes.profiler_window import ProfilerWindow

if TYPE_CHECKING:
    from precscope.op_records import OpRecord

#: What an op of this type can only come from. "conv" and "conv_1" differ in one suffix, which TensorFlow uses as well.
OWNERS = {
    "Relu": "conv",
    "ReluGrad": "conv",
    "Elu": "conv_1",
    "EluGrad": "conv_1",
    "Softplus": "encoder/dense",
    "SoftplusGrad": "encoder/dense",
    "Softsign": "encoder/dense_1",
    "SoftsignGrad": "encoder/dense_1",
    "Selu": "shared",
    "SeluGrad": "shared",
    "Tanh": "block/inner",
    "TanhGrad": "block/inner",
}


class Block(keras.layers.Layer):
    """A layer whose sub-layer is called otherwise than the attribute that holds it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(name="block", **options)
        self.inner = keras.layers.Dense(6, activation="tanh", name="projection")

    def call(self, inputs: Any) -> Any:
        return self.inner(inputs)


def layers_of(model: Any) -> list[tuple[str, Any]]:
    """Return (id, layer) pairs as a session has them: ids by ownership and attribute."""
    encoder, block = model.get_layer("encoder"), model.get_layer("block")
    owned = [(layer.name, layer) for layer in model.layers]
    owned += [(f"encoder/{layer.name}", layer) for layer in encoder.layers]
    return [*owned, ("block/inner", block.inner)]


def make_model(jit_compile: bool) -> Any:
    layers = keras.layers
    policy = {"dtype": "mixed_float16"}
    shared = layers.Dense(6, activation="selu", name="shared", **policy)
    encoder = keras.Sequential(
        [
            layers.Dense(6, activation="softplus", name="dense", **policy),
            layers.Dense(6, activation="softsign", name="dense_1", **policy),
        ],
        name="encoder",
    )
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="conv", **policy)(inputs)
    x = layers.Conv2D(4, 3, activation="elu", name="conv_1", **policy)(x)
    x = shared(shared(encoder(layers.Flatten(name="flatten", **policy)(x))))
    outputs = layers.Dense(3, name="head")(Block(**policy)(x))
    model = keras.Model(inputs, outputs, name="model")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), loss, jit_compile=jit_compile)
    return model


@pytest.fixture(scope="module", params=[False, True], ids=["no_xla", "xla"])
def records(request: pytest.FixtureRequest) -> tuple[OpRecord, ...]:
    model = make_model(request.param)
    images = np.random.default_rng(0).random((32, 8, 8, 3), np.float32)
    model.fit(images, np.arange(32) % 3, batch_size=16, verbose=0)
    with ProfilerWindow() as window:
        assert window.start(), window.reason
        model.fit(images, np.arange(32) % 3, batch_size=16, verbose=0)
        path = window.stop()
        assert path is not None, window.reason
        return op_records(read_trace(path), paths_of_layers(layers_of(model)))


def test_each_op_lands_on_its_layer(records: tuple[OpRecord, ...]) -> None:
    found = [record for record in records if record.op_type in OWNERS]
    assert len({record.layer for record in found}) >= 4  # XLA may name a kernel after a neighbour in the same layer
    assert {record.op for record in found if record.layer != OWNERS[str(record.op_type)]} == set()


def test_direction_follows_the_op(records: tuple[OpRecord, ...]) -> None:
    found = [record for record in records if record.op_type in OWNERS]
    # Forward values may be recomputed in the backward pass under XLA, but no gradient belongs to the forward pass.
    assert {record.direction for record in found} == {"forward", "backward"}
    assert all(record.direction == "backward" for record in found if str(record.op_type).endswith("Grad"))


def test_every_layer_has_both_passes(records: tuple[OpRecord, ...]) -> None:
    rows = {row.layer: row for row in layer_times(records, steps=2) if row.layer}
    for layer in ("conv", "conv_1", "encoder/dense", "encoder/dense_1", "shared", "block/inner", "head"):
        assert rows[layer].forward_ms, layer
        assert rows[layer].backward_ms, layer


def test_optimizer_and_input_are_seen(records: tuple[OpRecord, ...]) -> None:
    parts = {row.part: row.total_ms for row in layer_times(records, steps=2)}
    assert parts["optimizer"] > 0
    assert parts["input"] > 0


def test_what_stays_unattributed_has_no_scope(records: tuple[OpRecord, ...]) -> None:
    # Metrics run outside of every scope, and on a CPU XLA drops the names of some convolutions' gradients.
    unknown = [record.op for record in records if record.direction is None]
    assert [op for op in unknown if "/" in op.removesuffix("/ReadVariableOp")] == []


def test_a_cpu_has_no_tensor_cores(records: tuple[OpRecord, ...]) -> None:
    assert {record.tensor_core for record in records} == {False}
    assert {record.device for record in records} == {"host"}
