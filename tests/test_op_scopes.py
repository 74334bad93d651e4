"""From op names to layers and directions. The names are ones that Keras 3.15 and TensorFlow 2.21 made."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from precscope.probes.layer_paths import paths_of_layers, paths_of_records
from precscope.probes.op_scopes import OpPlace, OpScopes, strip_wrappers
from precscope.records import LayerRecord

CALL = "StatefulPartitionedCall/"
#: Layers in the order of their calls: conv2d, conv2d_1, the Sequential `enc` with three Dense, an attention, an LSTM.
PATHS = {
    path: path
    for path in (
        *("conv2d", "conv2d_1", "enc", "enc/dense", "enc/dense_1", "enc/dense_2", "multi_head_attention"),
        *("multi_head_attention/query", "shared", "lstm", "lstm/lstm_cell", "dense_3"),
    )
}
MODEL = "functional_1_1/"
LOOP = f"{MODEL}lstm_1/while/body/_95/{MODEL}lstm_1/while/"
NAMES: dict[str, tuple[Any, Any]] = {
    f"{MODEL}conv2d_1/BiasAdd": ("conv2d", "forward"),
    f"{MODEL}conv2d_1_2/BiasAdd": ("conv2d_1", "forward"),
    f"gradient_tape/{MODEL}conv2d_1/BiasAdd/BiasAddGrad": ("conv2d", "backward"),
    f"gradient_tape/{MODEL}conv2d_1_2/Relu/ReluGrad": ("conv2d_1", "backward"),
    f"{MODEL}enc_1/dense_1/MatMul": ("enc/dense", "forward"),
    f"{MODEL}enc_1/dense_1_2/MatMul": ("enc/dense_1", "forward"),
    f"{MODEL}enc_1/dense_2_1/MatMul": ("enc/dense_2", "forward"),
    f"{MODEL}enc_1/Cast": ("enc", "forward"),
    f"{MODEL}multi_head_attention_1/query_1/einsum/Einsum": ("multi_head_attention/query", "forward"),
    f"{MODEL}multi_head_attention_1/Softmax": ("multi_head_attention", "forward"),
    f"{MODEL}shared_1/MatMul": ("shared", "forward"),
    f"{MODEL}shared_3/MatMul": ("shared", "forward"),  # its second call
    f"{LOOP}lstm_cell_1/Cast/Cast": ("lstm/lstm_cell", "forward"),
    f"{LOOP}add_1": ("lstm", "forward"),
    f"{MODEL}dense_3_1/BiasAdd": ("dense_3", "forward"),
    f"{MODEL}Cast_1": (None, "forward"),
    f"gradient_tape/{MODEL}Cast_1/Cast": (None, "backward"),
    "compile_loss/sparse_categorical_crossentropy/Sum": (None, "forward"),
    "gradient_tape/compile_loss/sparse_categorical_crossentropy/Tile": (None, "backward"),
    "adam/Mul_3": (None, "optimizer"),
    "cond/then/_322/cond/adam/AssignSubVariableOp": (None, "optimizer"),
    "cond/then/_322/cond/truediv_2": (None, "optimizer"),
    "IteratorGetNext/_1": (None, "input"),
    f"{MODEL}conv2d_1/precscope_tap/Sum": (None, "precscope"),
    "precscope/pack/Max": (None, "precscope"),
    "div_no_nan": (None, None),
    "": (None, None),
}


@pytest.mark.parametrize("prefix", ["", CALL, "while/body/_1/while/" + CALL], ids=["xla", "function", "several_steps"])
def test_names_that_keras_makes(prefix: str) -> None:
    names = {(name if name.startswith("Iterator") else prefix + name): place for name, place in NAMES.items()}
    scopes = OpScopes(PATHS, names)
    assert {name: scopes.place(name) for name in names} == {name: OpPlace(*place) for name, place in names.items()}


@pytest.mark.parametrize(
    ("name", "op_type", "place"),
    [
        ("IsFinite_6", "IsFinite", (None, "optimizer")),
        ("All_8", "All", (None, "optimizer")),
        ("ArithmeticOptimizer/ReorderCastLikeAndValuePreserving_float_IsFinite_3", "IsFinite", (None, "optimizer")),
        ("AddN_1", "AddN", (None, "backward")),
        ("Add", "AddV2", (None, None)),
        # The same types inside a layer are the layer's.
        (f"{MODEL}shared_1/IsFinite", "IsFinite", ("shared", "forward")),
    ],
)
def test_types_tell_where_names_do_not(name: str, op_type: str, place: tuple[Any, Any]) -> None:
    assert OpScopes(PATHS, NAMES).place(CALL + name, op_type) == OpPlace(*place)


def test_scopes_without_numbers() -> None:
    """Where each scope is opened once, "dense_1" is the layer of that name."""
    names = ["model/dense/MatMul", "model/dense_1/MatMul", "model/conv/Conv2D"]
    scopes = OpScopes({"dense": "dense", "dense_1": "dense_1", "conv": "conv"}, names)
    assert [scopes.place(name).layer for name in names] == ["dense", "dense_1", "conv"]


def test_exact_scopes_as_paths() -> None:
    layers = {"model_1/dense_1": "dense", "model_1/dense_1_2": "dense_1"}
    scopes = OpScopes(layers, ["model_1/dense_1/MatMul", "model_1/dense_1_2/MatMul"])
    assert scopes.place("model_1/dense_1/MatMul").layer == "dense"
    assert scopes.place("model_1/dense_1_2/MatMul").layer == "dense_1"


def test_a_condition_without_an_update_is_not_the_optimizers() -> None:
    scopes = OpScopes(PATHS, ["cond/then/_1/cond/Mul", "adam/Mul", "mine/adam/Mul", "mine/Mul"])
    assert scopes.place("cond/then/_1/cond/Mul") == OpPlace(None, None)
    assert scopes.place("mine/adam/Mul") == OpPlace(None, "optimizer")
    assert scopes.place("mine/Mul") == OpPlace(None, None)


def test_an_optimizer_by_another_name() -> None:
    assert OpScopes(PATHS, ["mine_1/Mul"]).place("mine_1/Mul").direction is None
    assert OpScopes(PATHS, ["mine_1/Mul"], optimizers=["mine"]).place("mine_1/Mul").direction == "optimizer"


def test_strip_wrappers() -> None:
    assert (
        strip_wrappers("StatefulPartitionedCall/PartitionedCall_2/model_1/dense_1/MatMul") == "model_1/dense_1/MatMul"
    )


class Named(NamedTuple):
    name: str


def test_paths_of_layers_go_by_names() -> None:
    layers = [
        ("encoder", "encoder"),
        ("encoder/blocks/0", "block"),
        ("encoder/blocks/0/attention", "mha"),
        ("head", "head"),
    ]
    paths = paths_of_layers((layer_id, Named(name)) for layer_id, name in layers)
    assert paths == {
        "encoder": "encoder",
        "encoder/block": "encoder/blocks/0",
        "encoder/block/mha": "encoder/blocks/0/attention",
        "head": "head",
    }


def test_a_path_of_two_layers_is_nobodys() -> None:
    paths = paths_of_layers([("a", Named("same")), ("b", Named("same")), ("c", Named("other"))])
    assert paths == {"other": "c"}


def make_layer(layer_id: str, type: str, keras_path: str | None) -> LayerRecord:
    return LayerRecord(layer_id, 0, type, keras_path, "mixed_float16", "float16", "float32")


def test_paths_of_records_guess_the_names_of_layers_without_weights() -> None:
    records = [
        make_layer("attention", "MultiHeadAttention", "model/multi_head_attention"),
        make_layer("attention/_softmax", "Softmax", None),
        make_layer("relu", "ReLU", None),
    ]
    scopes = OpScopes(
        paths_of_records(records), ["model_1/multi_head_attention_1/softmax_1/Softmax", "model_1/relu_1/Relu"]
    )
    assert scopes.place("model_1/multi_head_attention_1/softmax_1/Softmax").layer == "attention/_softmax"
    assert scopes.place("model_1/multi_head_attention_1/MatMul").layer == "attention"
    assert scopes.place("model_1/relu_1/Relu").layer == "relu"
