"""The method in which calling a layer ends, shadowed for as long as something watches it; operations of a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from precscope.probes import keras_internals

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["operations_since", "shadow_call"]


def shadow_call(layer: Any, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[], None]:
    """Shadow what `layer(...)` ends in by `wrap` of it, and return a function that undoes it.

    That is `call`, or `quantized_call` where the layer is quantized: Keras does not call `call` then.
    """
    name = "call" if keras_internals.own_policy(layer).quantization_mode is None else "quantized_call"
    return keras_internals.set_instance_attribute(layer, name, wrap(getattr(layer, name)))


def operations_since(graph: Any, begin: int) -> list[Any]:
    """Return the operations that were added to a `tf.Graph` since it had `begin` of them; none where it is None.

    How many it has is `graph.num_operations()`, which does not list them: a list for each layer would take a time that
    grows with the square of their number.
    """
    if graph is None or graph.num_operations() == begin:
        return []
    operations: list[Any] = graph.get_operations()[begin:]
    return operations
