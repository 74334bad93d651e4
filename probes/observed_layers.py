"""Looks at what layers put out, and at the gradients that arrive there, while a shadow step is traced."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from precscope.probes.internals.layer_calls import AddedLosses, shadow_call, with_mask_of
from precscope.probes.reading import TensorKey
from precscope.probes.taps import is_read_by_losses
from precscope.probes.tensor_sources import is_float_tensor
from precscope.reference_records import ADDED_LOSS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from precscope.probes.shadow_step import ShadowTrace

__all__ = ["added_loss_key", "observed_layers"]


@contextmanager
def observed_layers(
    layers: Mapping[str, Any],
    trace: ShadowTrace,
    observe: Callable[[TensorKey, int, Any], None],
    *,
    losses: bool = False,
) -> Iterator[None]:
    """Let `observe` see each float output of the layers and the gradient that arrives there, while a step is traced.

    It is called with the tensor's key (kind "activation" or "gradient"), the number of the layer's call, from 0, and
    the tensor; what it wants of it, it keeps with `trace.keep`. Nothing is seen inside loops and branches, nor of
    layers that were not called, and no gradient of a softmax or sigmoid in float32, whose op Keras' losses look for.

    Args:
        layers: The layers, by id.
        trace: The step that is traced.
        observe: Called at the time of tracing, forward in the order of the calls, backward against it.
        losses: Show it the losses too that a layer adds in its call, as `added_loss_key` names them.
    """
    with ExitStack() as stack:
        for layer_id, layer in layers.items():
            added = partial(AddedLosses, layer) if losses else None
            observed = partial(_observed_call, layer_id, trace=trace, observe=observe, added=added)
            stack.callback(shadow_call(layer, observed))
        yield


def added_loss_key(layer_id: str, number: int) -> TensorKey:
    """Return the key of a loss that a layer adds in its call: that of an activation, which it is to all purposes."""
    return TensorKey(layer_id, "activation", f"{ADDED_LOSS} {number}")


def _observed_call(
    layer_id: str,
    call: Callable[..., Any],
    trace: ShadowTrace,
    observe: Callable[[TensorKey, int, Any], None],
    added: Callable[[], AddedLosses] | None,
) -> Callable[..., Any]:
    calls = 0

    def observed_output(name: str, number: int, tensor: Any) -> Any:
        if not is_float_tensor(tensor):
            return tensor
        if is_read_by_losses(tensor):
            observe(TensorKey(layer_id, "activation", name), number, tensor)
            return tensor

        def tap(x: Any) -> Any:
            observe(TensorKey(layer_id, "activation", name), number, x)
            return tf.identity(x), lambda gradient: observed_gradient(name, number, gradient)

        return with_mask_of(tensor, tf.custom_gradient(tap)(tensor))

    def observed_gradient(name: str, number: int, gradient: Any) -> Any:
        if isinstance(gradient, tf.Tensor) and trace.is_at_root:
            observe(TensorKey(layer_id, "gradient", name), number, gradient)
        return gradient

    def observed_call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if not trace.is_at_root:
            return call(*args, **kwargs)
        losses = None if added is None else added()
        outputs = call(*args, **kwargs)
        number, calls = calls, calls + 1
        for place, loss in enumerate([] if losses is None else losses()):
            observe(added_loss_key(layer_id, place), number, loss)
        flat = [observed_output(str(i), number, tensor) for i, tensor in enumerate(keras.tree.flatten(outputs))]
        return keras.tree.pack_sequence_as(outputs, flat)

    return observed_call
