"""What is recorded of each layer, why not where it is not, and what was seen of it while the step was traced."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras

from precscope.probes.internals.layer_tree import has_named_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["CodeBetween", "TapPlan", "plan_taps"]

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
        place: The user's line of code that computes in the layer or calls it; None where none is known.
    """

    id: str
    layer: Any
    unseen: str | None = None
    gradient_unseen: str | None = None
    order: int | None = None
    inputs: list[str] = field(default_factory=list)
    no_gradient: str = "no gradient arrives at its output"
    place: str | None = None


@dataclass(frozen=True)
class CodeBetween:
    """Stands in a plan for a layer that is none: the batch, or code between layers.

    Attributes:
        op_type: The op that a tensor comes from ("AddV2"); "InputLayer" for the batch.
        dtype: Its dtype.
    """

    op_type: str
    dtype: str


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
    if has_named_layers(layer):
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
