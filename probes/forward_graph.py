"""The ops of a model's forward pass, by the layer that makes each: traced on symbolic inputs, nothing is computed."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from precscope.probes.code_places import place_in_call
from precscope.probes.internals.graphs import current_graph, operation_count, operations_since
from precscope.probes.internals.layer_calls import shadow_call
from precscope.probes.internals.layer_tree import has_named_layers, input_structure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["ForwardGraph", "LayerOp", "input_specs", "trace_forward"]


@dataclass(frozen=True)
class LayerOp:
    """One op that a layer's `call` made, sub-layers' not among them.

    Attributes:
        layer: Id of the layer.
        op: The op.
        place: The user's line that made it ("train.py:12: y = tf.exp(x)"); None where it is a library's own.
    """

    layer: str
    op: Any
    place: str | None


@dataclass(frozen=True)
class ForwardGraph:
    """The forward pass in training.

    Attributes:
        ops: In the order in which they were made.
        output_dtypes: dtype of each of the model's outputs.
    """

    ops: tuple[LayerOp, ...]
    output_dtypes: tuple[str, ...]


def trace_forward(model: Any, layers: Mapping[str, Any], inputs: Any) -> ForwardGraph:
    """Trace `model(inputs, training=True)`.

    Args:
        model: A built Keras model.
        layers: Its layers by id, as `walk_layers` names them.
        inputs: A tree of `tf.TensorSpec`.
    """
    owners: dict[int, LayerOp] = {}

    def noting(layer_id: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            graph = current_graph()
            begin = operation_count(graph)
            result = call(*args, **kwargs)
            for op in operations_since(graph, begin):
                # A sub-layer's call ended before its owner's: what it made is taken.
                owners.setdefault(id(op), LayerOp(layer_id, op, place_in_call(op, __file__, "noted")))
            return result

        return noted

    with ExitStack() as stack:
        for layer_id, layer in layers.items():
            stack.callback(shadow_call(layer, partial(noting, layer_id)))
        traced = tf.function(lambda tree: model(tree, training=True), autograph=False, jit_compile=False)
        with np.errstate(over="ignore"):  # a constant that overflows is a finding, not a warning of NumPy's
            function = traced.get_concrete_function(inputs)
    outputs = keras.tree.flatten(function.structured_outputs)
    return ForwardGraph(tuple(owners.values()), tuple(output.dtype.name for output in outputs))


def input_specs(model: Any, specs: Any) -> Any:
    """Return a tree of `tf.TensorSpec` for a call of the model; None where it is not known."""
    if has_named_layers(model) and getattr(model, "inputs", None):
        return keras.tree.map_structure(
            lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), input_structure(model)
        )
    if specs is None:
        return None
    return specs[0] if isinstance(specs, tuple) else specs
