"""Dtype policies of single layers: reading and setting them past Keras' sharing, caches and saving."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from precscope.probes.internals.layer_tree import functional_inside, has_named_layers, walk_layers

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "float32_compute_policy",
    "overrides_compute_dtype",
    "own_policy",
    "refresh_dtype_cache",
    "set_own_policy",
    "set_saved_policies",
]

_ATTENTION = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
_SERIALIZES_ITS_LAYERS = (
    keras.layers.Wrapper,
    keras.layers.Bidirectional,
    keras.layers.TimeDistributed,
    keras.layers.StackedRNNCells,
    keras.layers.RNN,
)


def own_policy(layer: Any) -> Any:
    """Return the dtype policy that `layer` follows: of a DTypePolicyMap, what the map says about this layer."""
    policy = layer._dtype_policy
    if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        return policy[layer.path] if layer.path else policy.default_policy
    return policy


def overrides_compute_dtype(layer: Any) -> bool:
    """Tell whether the layer's class computes in a dtype of its own choice, whatever its policy says."""
    return type(layer).compute_dtype is not keras.layers.Layer.compute_dtype


def set_own_policy(layer: Any, policy: Any) -> Callable[[], None]:
    """Give `layer` this dtype policy and no other layer; return a function that undoes it.

    Past Keras' setter, which writes into a DTypePolicyMap that other layers, and Keras' global policy, share.
    """
    before = layer._dtype_policy
    layer._dtype_policy = policy

    def undo() -> None:
        layer._dtype_policy = before

    return undo


def refresh_dtype_cache(layer: Any) -> Callable[[], None]:
    """Bring what a layer keeps in its compute dtype to the present policy; return a function that undoes it.

    Normalization keeps mean and variance as constants. A Sequential or functional model inside another casts its input
    to the dtype of its first symbolic tensor, which is that of the layer before it when it was built.
    """
    if has_named_layers(layer) and layer.compute_dtype == "float32":
        return _widen_inputs(layer)
    if not isinstance(layer, keras.layers.Normalization) or getattr(layer, "mean", None) is None:
        return lambda: None
    before = layer.mean, layer.variance
    with tf.init_scope():
        if layer.input_mean is None:
            layer.finalize_state()
        else:  # given by the user, perhaps with more digits than the cast ones have
            pairs = zip(before, (layer.input_mean, layer.input_variance), strict=True)
            layer.mean, layer.variance = (_given(layer, cast, given) for cast, given in pairs)

    def undo() -> None:
        layer.mean, layer.variance = before

    return undo


def _widen_inputs(model: Any) -> Callable[[], None]:
    """Let a Sequential or functional model take float32 where it was built for 16 bits; return what undoes it."""
    functional = functional_inside(model) if isinstance(model, keras.Sequential) else model
    entries = [*getattr(functional, "_inputs", ()), *model._layers[:1]]  # Sequential asks its InputLayer as well
    inputs = [x for x in entries if isinstance(x, (keras.KerasTensor, keras.layers.InputLayer))]
    narrow = [x for x in inputs if x.dtype in ("float16", "bfloat16")]
    before = [(x, x._dtype) for x in narrow]
    for x in narrow:
        x._dtype = "float32"

    def undo() -> None:
        for x, dtype in before:
            x._dtype = dtype

    return undo


def _given(layer: Any, cast: Any, given: Any) -> Any:
    """Return a constant of a Normalization layer as it was given, in the shape that `build` gave it."""
    full = keras.ops.convert_to_tensor(given)
    if full.shape.num_elements() != cast.shape.num_elements():
        return keras.ops.cast(cast, layer.compute_dtype)  # it was broadcast
    return keras.ops.cast(keras.ops.reshape(full, cast.shape), layer.compute_dtype)


def float32_compute_policy(layer: Any) -> Any:
    """Return a dtype policy, without a name in Keras, that computes in float32 with the variables as they are."""
    policy = keras.dtype_policies.DTypePolicy("float32")
    policy._variable_dtype = layer.variable_dtype
    return policy


def set_saved_policies(layer: Any) -> tuple[bool, Callable[[], None]]:
    """Let a layer's configuration carry the policies of its sub-layers, where it can; return whether, and an undo.

    A saved model holds what `get_config` says. Containers and wrappers say it of the layers inside. Keras' other layers
    make theirs anew, with their own policy. Attention can be told more: its policy may be a DTypePolicyMap by path,
    whose default is what sub-layers without a path (softmax, dropout) get.
    """
    own = own_policy(layer)
    inside = [sub for _, sub in walk_layers(layer)]
    if has_named_layers(layer) or isinstance(layer, _SERIALIZES_ITS_LAYERS):
        return True, lambda: None
    alike = all(own_policy(sub).name == own.name for sub in inside)
    if not isinstance(layer, _ATTENTION) or alike:
        return alike and type(layer).__module__.startswith("keras."), lambda: None
    without_path = {own_policy(sub).name for sub in inside if not sub.path}
    if layer.path is None or len(without_path) > 1:
        return False, lambda: None
    by_path = {sub.path: own_policy(sub) for sub in (layer, *inside) if sub.path}
    policies = keras.dtype_policies.DTypePolicyMap(without_path.pop() if without_path else own.name, by_path)
    return True, set_own_policy(layer, policies)
