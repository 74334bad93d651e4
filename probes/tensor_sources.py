"""Whose output a tensor is, or what it was computed from: followed backwards through the graph that is being traced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow as tf

from precscope.probes.internals.graphs import current_graph

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TensorSources", "is_float_tensor", "map_named"]

#: Ops that hand values on, or select among them: what they put out needs no recording of its own.
_HANDING_ON = frozenset(
    (
        *("BroadcastTo", "Cast", "ConcatV2", "ExpandDims", "GatherV2", "Identity", "IdentityN", "Pack", "Pad", "PadV2"),
        *(
            "MaxPool",
            "Relu",
            "Reshape",
            "Slice",
            "Split",
            "SplitV",
            "Squeeze",
            "StopGradient",
            "StridedSlice",
            "Tile",
            "Transpose",
        ),
        "Unpack",
        "XlaOptimizationBarrier",
    )
)
_MOST_OPS = 300
_BATCH_NAMES = ("x", "y", "sample_weight")


class TensorSources:
    """Knows the tensors that recorded layers put out in the trace at hand."""

    def __init__(self) -> None:
        # Kept alive, so that no id is used twice.
        self._producers: dict[int, tuple[Any, str]] = {}

    def add(self, tensor: Any, layer_id: str) -> None:
        """Note that a layer put out `tensor`."""
        self._producers[id(tensor)] = (tensor, layer_id)

    def clear(self) -> None:
        """Forget the trace."""
        self._producers.clear()

    def producer(self, tensor: Any) -> str | None:
        """Return the layer that put out `tensor`, or what it was cast from; None where none did."""
        found = self._producers.get(id(tensor)) or self._producers.get(id(_before_cast(tensor)))
        return None if found is None else found[1]

    def computed_from(self, tensor: Any) -> tuple[list[str], list[Any]]:
        """Return the layers from whose outputs a tensor was computed, and the ops in between that compute.

        The ops begin with the one nearest the tensor. Nothing is known in eager execution, which keeps no graph.
        """
        op = None if current_graph() is None else getattr(tensor, "op", None)
        found: dict[str, None] = {}
        computing: list[Any] = []
        pending, seen = [] if op is None else [op], set[int]()
        while pending and len(seen) < _MOST_OPS:
            op = pending.pop(0)
            if id(op) in seen:
                continue
            seen.add(id(op))
            if op.type not in _HANDING_ON and op.inputs:
                computing.append(op)
            for source in op.inputs:
                producer = self._producers.get(id(source))
                if producer is None:
                    pending.append(source.op)
                else:
                    found[producer[1]] = None
        return list(found), computing


def map_named(function: Callable[[str, Any], Any], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a train step's positional arguments with `function(name, leaf)` in place of each leaf.

    What `fit` hands over, (x, y, sample_weight) in one tuple, goes by these names, anything else by its position.
    """
    if len(arguments) == 1 and isinstance(arguments[0], tuple) and len(arguments[0]) <= len(_BATCH_NAMES):
        return (tuple(_map(function, name, part) for name, part in zip(_BATCH_NAMES, arguments[0], strict=False)),)
    if len(arguments) == 1:
        return (_map(function, _BATCH_NAMES[0], arguments[0]),)
    return tuple(_map(function, str(position), part) for position, part in enumerate(arguments))


def _map(function: Callable[[str, Any], Any], name: str, part: Any) -> Any:
    if type(part) is dict:
        return {key: _map(function, f"{name}/{key}", value) for key, value in part.items()}
    if type(part) in (list, tuple):
        return type(part)(_map(function, f"{name}/{index}", value) for index, value in enumerate(part))
    return function(name, part)


def _before_cast(tensor: Any) -> Any:
    """Return what a graph tensor was cast from: Keras casts at the border of two dtype policies."""
    operation = None if current_graph() is None else getattr(tensor, "op", None)
    return operation.inputs[0] if operation is not None and operation.type == "Cast" else tensor


def is_float_tensor(value: Any) -> bool:
    """Tell whether something is a dense float tensor; a Keras variable counts as a tensor for TensorFlow, not here."""
    return isinstance(value, tf.Tensor) and bool(value.dtype.is_floating)
