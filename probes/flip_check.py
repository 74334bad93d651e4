"""Whether layers do compute in the policy that was set: seen in their outputs while a function is traced.

A custom layer may have noted its dtype when it was made, or cast by itself. Its policy then says one thing and its
output another, or the two meet in an operation that takes no mix and raises.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from precscope.error_text import error_in_a_line
from precscope.formats import FORMATS
from precscope.probes.internals.layer_calls import set_instance_attribute
from precscope.probes.internals.layer_tree import MODEL_ID, has_named_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["FlipWatch", "watch_flips"]


@dataclass
class FlipWatch:
    """What was seen of layers that should compute in the dtype of their policy.

    Attributes:
        unflipped: Why a layer does not follow its policy, by id; in the order in which it was seen.
    """

    unflipped: dict[str, str] = field(default_factory=dict)
    _has_failed: bool = False

    def look(self, layer_id: str, layer: Any, outputs: Any) -> None:
        """Note a layer whose output has fewer bits than its policy computes in."""
        bits = FORMATS[layer.compute_dtype].bits
        for tensor in keras.tree.flatten(outputs):
            dtype = keras.backend.standardize_dtype(tensor.dtype) if tf.is_tensor(tensor) else None
            if dtype in FORMATS and FORMATS[dtype].bits < bits:
                self.unflipped[layer_id] = (
                    f"its output is {dtype} although its policy computes in {layer.compute_dtype}"
                )

    def failed(self, layer_id: str, error: Exception) -> None:
        """Note the innermost layer that raised: the first to see the error, which its owners see after it."""
        if not self._has_failed:
            self.unflipped[layer_id] = f"it failed in that policy: {error_in_a_line(error, 200)}"
        self._has_failed = True


@contextmanager
def watch_flips(layers: Mapping[str, Any]) -> Iterator[FlipWatch]:
    """Look at the outputs of these layers, by id, in whatever is traced or run eagerly inside the context.

    A layer that only passes tensors from layer to layer (a Sequential or functional model) is not looked at.
    """
    watch = FlipWatch()
    with ExitStack() as stack:
        for layer_id, layer in layers.items():
            if layer_id == MODEL_ID or has_named_layers(layer):
                continue
            if layer.compute_dtype in FORMATS:
                call = _watched(watch, layer_id, layer, layer.call)
                stack.callback(set_instance_attribute(layer, "call", call))
        yield watch


def _watched(watch: FlipWatch, layer_id: str, layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
    def watched_call(*args: Any, **kwargs: Any) -> Any:
        try:
            outputs = call(*args, **kwargs)
        except Exception as error:
            watch.failed(layer_id, error)
            raise
        watch.look(layer_id, layer, outputs)
        return outputs

    return watched_call
