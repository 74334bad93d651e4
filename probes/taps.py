"""Taps on layers: an identity around the output of `layer.call`, while a probed step is traced."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from precscope.probes import keras_internals, shadow_internals
from precscope.probes.recorder import Recorder, TensorKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["LayerTaps", "TapPlan", "plan_taps"]

# Layers whose output is their input in another order: what they pass on was recorded where it was made.
_REARRANGING = (
    keras.layers.InputLayer,
    keras.layers.Flatten,
    keras.layers.Reshape,
    keras.layers.Permute,
    keras.layers.RepeatVector,
    keras.layers.Identity,
)
# Layers whose every output value is one of their input's, or zero: their gradients are new, their outputs are not.
_SELECTING = (
    keras.layers.ReLU,
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.MaxPooling3D,
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalMaxPooling3D,
    keras.layers.ZeroPadding1D,
    keras.layers.ZeroPadding2D,
    keras.layers.ZeroPadding3D,
    keras.layers.Cropping1D,
    keras.layers.Cropping2D,
    keras.layers.Cropping3D,
)


@dataclass
class TapPlan:
    """What is to be recorded of one layer, and what was seen of it.

    Attributes:
        id: The layer's id.
        layer: The layer.
        unseen: Why its output is not recorded, or None.
        gradient_unseen: Why the gradient at its output is not recorded, or None.
        order: Position in the forward pass, None until it was called.
        inputs: Ids of the layers whose outputs it consumed.
        no_gradient: What to say if no gradient was recorded although one was asked for.
    """

    id: str
    layer: Any
    unseen: str | None = None
    gradient_unseen: str | None = None
    order: int | None = None
    inputs: list[str] = field(default_factory=list)
    no_gradient: str = "no gradient arrives at its output"


def plan_taps(
    layers: Mapping[str, Any], selects: Callable[[str, str], bool], activations: bool, gradients: bool
) -> dict[str, TapPlan]:
    """Decide what is recorded of each layer, by id; `selects` is asked with the layer's id and class name."""
    plans = {}
    for layer_id, layer in layers.items():
        reason = _reason_to_leave_out(layer, selects(layer_id, type(layer).__name__))
        forward = "switched off" if not activations else _reason_to_leave_out_forward(layer)
        backward = None if gradients else "switched off"
        plans[layer_id] = TapPlan(layer_id, layer, reason or forward, reason or backward)
    return plans


def _reason_to_leave_out(layer: Any, selected: bool) -> str | None:
    if keras_internals.has_named_layers(layer):
        return "its output is that of its last layer"
    if isinstance(layer, _REARRANGING):
        return "it only rearranges its input"
    return None if selected else "not selected"


def _reason_to_leave_out_forward(layer: Any) -> str | None:
    relu = isinstance(layer, keras.layers.Activation) and getattr(layer.activation, "__name__", "") in (
        "relu",
        "linear",
    )
    if isinstance(layer, keras.layers.ReLU) and layer.negative_slope:
        return None
    return "its output values are among its input's" if relu or isinstance(layer, _SELECTING) else None


class LayerTaps:
    """Puts taps on a model's layers while a probed step is traced, and takes them off again."""

    def __init__(self, plans: dict[str, TapPlan], recorder: Recorder) -> None:
        self.plans = plans
        self._recorder = recorder
        self._producers: dict[int, tuple[Any, str]] = {}  # tensor by id (kept alive, so that no id is used twice)
        self._calls = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Shadow `call` of every layer for as long as the context lasts."""
        with ExitStack() as stack:
            for plan in self.plans.values():
                call = self._tapped(plan, plan.layer.call)
                stack.callback(keras_internals.set_instance_attribute(plan.layer, "call", call))
            try:
                yield
            finally:
                self._producers.clear()

    def _tapped(self, plan: TapPlan, call: Callable[..., Any]) -> Callable[..., Any]:
        def tapped_call(*args: Any, **kwargs: Any) -> Any:
            if not self._recorder.active:
                return call(*args, **kwargs)
            self._note_inputs(plan, (args, kwargs))
            outputs = call(*args, **kwargs)
            if plan.order is None:
                plan.order, self._calls = self._calls, self._calls + 1
            return self._tap_outputs(plan, outputs)

        return tapped_call

    def _note_inputs(self, plan: TapPlan, arguments: Any) -> None:
        for tensor in keras.tree.flatten(arguments):
            producer = self._producers.get(id(tensor)) or self._producers.get(id(_before_cast(tensor)))
            if producer is not None and producer[1] not in plan.inputs and producer[1] != plan.id:
                plan.inputs.append(producer[1])

    def _tap_outputs(self, plan: TapPlan, outputs: Any) -> Any:
        flat = keras.tree.flatten(outputs)
        tapped = [self._tap(plan, str(index), tensor) for index, tensor in enumerate(flat)]
        for tensor in tapped:
            self._producers[id(tensor)] = (tensor, plan.id)
        return keras.tree.pack_sequence_as(outputs, tapped)

    def _tap(self, plan: TapPlan, name: str, tensor: Any) -> Any:
        if not tf.is_tensor(tensor) or isinstance(tensor, tf.SparseTensor | tf.RaggedTensor):
            return tensor
        if not tensor.dtype.is_floating or (plan.unseen and plan.gradient_unseen):
            return tensor
        recorder = self._recorder
        forward, backward = TensorKey(plan.id, "activation", name), TensorKey(plan.id, "gradient", name)
        if recorder.place() == "loop":  # a side effect in the gradient of a loop is refused by TensorFlow
            plan.no_gradient = "inside a loop only the forward pass can be recorded"
            return tensor if plan.unseen else recorder.record(forward, tensor)

        def tap(x: Any) -> Any:
            x = x if plan.unseen else recorder.record(forward, x)
            return tf.identity(x), lambda gradient: _tap_gradient(recorder, backward, plan, gradient)

        return shadow_internals.with_mask_of(tensor, tf.custom_gradient(tap)(tensor))


def _tap_gradient(recorder: Recorder, key: TensorKey, plan: TapPlan, gradient: Any) -> Any:
    if plan.gradient_unseen or not recorder.active or not isinstance(gradient, tf.Tensor):
        return gradient
    return recorder.record(key, gradient)


def _before_cast(tensor: Any) -> Any:
    """Return what a graph tensor was cast from: Keras casts at the border of two dtype policies."""
    operation = None if tf.executing_eagerly() else getattr(tensor, "op", None)
    return operation.inputs[0] if operation is not None and operation.type == "Cast" else tensor
