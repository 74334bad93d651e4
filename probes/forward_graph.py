"""The ops of a model's forward pass, by the layer that makes each: traced on symbolic inputs, nothing is computed."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from precscope.probes.code_places import place_in_call
from precscope.probes.internals.graphs import current_graph
from precscope.probes.internals.layer_calls import set_instance_attribute

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["ForwardGraph", "LayerOp", "trace_forward"]


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
            begin = 0 if graph is None else len(graph.get_operations())
            result = call(*args, **kwargs)
            for op in [] if graph is None else graph.get_operations()[begin:]:
                # A sub-layer's call ended before its owner's: what it made is taken.
                owners.setdefault(id(op), LayerOp(layer_id, op, place_in_call(op, __file__, "noted")))
            return result

        return noted

    with ExitStack() as stack:
        for layer_id, layer in layers.items():
            tapped = noting(layer_id, layer.call)
            stack.callback(set_instance_attribute(layer, "call", tapped))
        traced = tf.function(lambda tree: model(tree, training=True), autograph=False, jit_compile=False)
        with np.errstate(over="ignore"):  # a constant that overflows is a finding, not a warning of NumPy's
            function = traced.get_concrete_function(inputs)
    outputs = keras.tree.flatten(function.structured_outputs)
    return ForwardGraph(tuple(owners.values()), tuple(output.dtype.name for output in outputs))
