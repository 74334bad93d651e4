"""Other dtype policies for the layers of a built model, by layer id, for a while or for good.

A Keras layer asks its dtype policy when it is called, so a policy that is set takes effect in whatever is traced next:
build a new tf.function for each setting, for one that was traced keeps what it has. `fit` keeps its train function
too (see `precscope.probes.apply_policy`).
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import keras

from precscope.errors import PolicyError
from precscope.probes.internals.dtype_policies import (
    overrides_compute_dtype,
    own_policy,
    refresh_dtype_cache,
    set_own_policy,
)
from precscope.probes.internals.layer_tree import MODEL_ID, own_variables, walk_layers
from precscope.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = [
    "cannot_flip",
    "flippable_layers",
    "layer_policies",
    "model_layers",
    "set_layer_policies",
    "whole_model",
    "with_sublayers",
]

_FLOATS = ("float16", "bfloat16", "float32")


def model_layers(model: Any) -> dict[str, Any]:
    """Return the model itself (`MODEL_ID`, whose policy casts a subclassed model's inputs) and its layers, by id."""
    return {MODEL_ID: model, **dict(walk_layers(model))}


def cannot_flip(layer: Any, policy: str = "float32") -> str | None:
    """Return why the policy called `policy` cannot be set on `layer`, or None where it can.

    What a layer says about itself is all that is looked at: one that has noted its dtype when it was made, or casts by
    itself, shows that in its output only (see `precscope.probes.flip_check`).
    """
    wanted = keras.dtype_policies.get(policy)
    present = own_policy(layer)
    if present.quantization_mode is not None:
        return f"it is quantized ({present.name})"
    if layer.compute_dtype not in _FLOATS:
        return f"it computes in {layer.compute_dtype}"
    if overrides_compute_dtype(layer):
        return f"{type(layer).__name__} decides about its compute dtype itself"
    dtypes = {keras.backend.standardize_dtype(variable.dtype) for variable in own_variables(layer)}
    other = sorted(dtype for dtype in dtypes if "float" in dtype and dtype != wanted.variable_dtype)
    if other:
        return (
            f"its variables are {other[0]}, and {policy!r} has them in {wanted.variable_dtype}: no policy changes the "
            f"dtype of variables that exist. Build it with a mixed policy, such as mixed_{other[0]}"
            if "16" in other[0]
            else f"its variables are {other[0]}, and {policy!r} has them in {wanted.variable_dtype}"
        )
    return None


def flippable_layers(model: Any, policy: str = "float32") -> tuple[dict[str, Any], dict[str, str]]:
    """Return the layers that can be given the policy called `policy`, by id, and of the others why not, by id.

    Layers that do not compute in floating point are in neither: there is nothing to flip.
    """
    can: dict[str, Any] = {}
    cannot: dict[str, str] = {}
    for layer_id, layer in model_layers(model).items():
        reason = cannot_flip(layer, policy)
        if reason is None:
            can[layer_id] = layer
        elif layer.compute_dtype in _FLOATS:
            cannot[layer_id] = reason
    return can, cannot


def whole_model(model: Any, policy: str) -> dict[str, str]:
    """Return `policy` by id for the model and every layer that can be given it; layers in float64 are left out."""
    return dict.fromkeys(flippable_layers(model, policy)[0], policy)


def with_sublayers(model: Any, layer_ids: Iterable[str]) -> tuple[str, ...]:
    """Return these layers' ids and those of all that they own, each once, owners first.

    A pin on a layer covers its sub-layers: attention computes in the dtypes of its projections and of its softmax.

    Raises:
        PolicyError: The model has no layer of this id.
    """
    layers = model_layers(model)
    found: dict[str, None] = {}
    for wanted in layer_ids:
        if wanted not in layers:
            raise _unknown(wanted, layers)
        owned = walk_layers(layers[wanted])
        inside = {id(layer) for _, layer in owned}
        found[wanted] = None
        found.update((layer_id, None) for layer_id, layer in layers.items() if id(layer) in inside)
    return tuple(found)


def set_layer_policies(model: Any, policies: Mapping[str, str]) -> Callable[[], None]:
    """Set dtype policies, by layer id, on a built model; return what sets the former ones again.

    Nothing is changed where an id or a policy is refused. Sub-layers are not included: see `with_sublayers`.

    Args:
        model: A built Keras model.
        policies: Names of dtype policies ("float32", "mixed_float16") by layer id; `MODEL_ID` is the model itself.

    Raises:
        PolicyError: There is no such layer, Keras knows no such policy, or the layer cannot be given it (the message
            says which and why).
    """
    layers = model_layers(model)
    for layer_id, policy in policies.items():
        _check(layer_id, policy, layers)
    with ExitStack() as undone_on_failure:
        for layer_id, policy in policies.items():
            undone_on_failure.callback(_set(layers[layer_id], policy))
        return undone_on_failure.pop_all().close


@contextmanager
def layer_policies(model: Any, policies: Mapping[str, str]) -> Iterator[None]:
    """Set dtype policies, by layer id, for as long as the context lasts; see `set_layer_policies`."""
    undo = set_layer_policies(model, policies)
    try:
        yield
    finally:
        undo()


def _check(layer_id: str, policy: str, layers: Mapping[str, Any]) -> None:
    if layer_id not in layers:
        raise _unknown(layer_id, layers)
    try:
        keras.dtype_policies.get(policy)
    except (ValueError, TypeError) as error:
        raise PolicyError(f"Keras knows no dtype policy {policy!r} (for layer {layer_id!r}): {error}") from None
    reason = cannot_flip(layers[layer_id], policy)
    if reason is not None:
        raise PolicyError(f"Layer {layer_id!r} cannot be given the dtype policy {policy!r}: {reason}.")


def _unknown(layer_id: str, layers: Mapping[str, Any]) -> PolicyError:
    hint = did_you_mean(layer_id, layers) or " Layer ids are listed by precscope report --all."
    return PolicyError(f"The model has no layer {layer_id!r}.{hint}")


def _set(layer: Any, policy: str) -> Callable[[], None]:
    """Set the policy and what the layer made of the former one; return what undoes both."""
    undo_policy = set_own_policy(layer, keras.dtype_policies.get(policy))
    undo_cache = refresh_dtype_cache(layer)

    def undo() -> None:
        undo_policy()
        undo_cache()

    return undo
