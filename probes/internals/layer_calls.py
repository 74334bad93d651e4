"""What happens around the call of a Keras layer: shadowed methods, masks, added losses, autocast, state."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import keras
from keras.src import backend
from keras.src.backend.common.global_state import get_global_attribute
from keras.src.backend.common.variables import AutocastScope
from keras.src.layers.layer import Layer
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

from precscope.probes.internals.dtype_policies import own_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "AddedLosses",
    "call_state",
    "call_under_policy",
    "created_layers",
    "kept_losses",
    "replaced_relu",
    "set_instance_attribute",
    "shadow_call",
    "with_mask_of",
]

#: Keras' base of preprocessing layers; its name and module differ between Keras' versions.
_DataLayer = keras.layers.Rescaling.__base__


def set_instance_attribute(target: Any, name: str, value: Any) -> Callable[[], None]:
    """Shadow a method by an attribute of the instance, past Keras' tracking; return a function that undoes it."""
    missing = object()
    before = target.__dict__.get(name, missing)
    target.__dict__[name] = value

    def undo() -> None:
        if before is missing:
            target.__dict__.pop(name, None)
        else:
            target.__dict__[name] = before

    return undo


def shadow_call(layer: Any, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[], None]:
    """Shadow what `layer(...)` ends in by `wrap` of it, and return a function that undoes it.

    That is `call`, or `quantized_call` where the layer is quantized: Keras does not call `call` then.
    """
    name = "call" if own_policy(layer).quantization_mode is None else "quantized_call"
    return set_instance_attribute(layer, name, wrap(getattr(layer, name)))


def with_mask_of(tensor: Any, other: Any) -> Any:
    """Return `other` with the Keras mask of `tensor`, if that has one."""
    mask = getattr(tensor, "_keras_mask", None)
    if mask is not None:
        other._keras_mask = mask
    return other


class AddedLosses:
    """Returns, when called, the losses that a layer itself has added (`add_loss`) since this was made: scalars."""

    def __init__(self, layer: Any) -> None:
        self._layer, self._before = layer, len(layer._losses)

    def __call__(self) -> list[Any]:
        """Return them in the order in which they were added."""
        return list(self._layer._losses[self._before :])


@contextmanager
def kept_losses(layers: Sequence[Any]) -> Iterator[None]:
    """Put the losses that layers have added (`add_loss`, activity regularizers) back at the end."""
    before = [(layer, list(layer._losses), set(layer._loss_ids)) for layer in layers]
    try:
        yield
    finally:
        for layer, losses, ids in before:
            layer._losses[:] = losses
            layer._loss_ids.clear()
            layer._loss_ids.update(ids)


def call_under_policy(layer: Any, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Return what `layer.__call__` would make of the arguments by `call` under the layer's present dtype policy.

    Only the casts are made: of the inputs, and of the variables. No mask is passed on, no loss of an activity
    regularizer added: that is done by the call of the layer around this one.
    """

    def convert(x: Any) -> Any:
        return layer.dtype_policy.convert_input(x, layer.autocast, layer.input_dtype)

    if isinstance(layer, _DataLayer):  # casts its data, whole numbers too, and has Keras' cast shut off meanwhile
        args = keras.tree.map_structure(lambda x: backend.convert_to_tensor(x, layer.compute_dtype), args)
    elif layer._convert_input_args:
        args, kwargs = keras.tree.map_structure(convert, (args, kwargs))
    is_float = keras.backend.is_float_dtype(layer.compute_dtype)
    with AutocastScope(layer.compute_dtype if layer.autocast and is_float else None):
        return call(*args, **kwargs)


def call_state(layers: Sequence[Any]) -> list[Any]:
    """Return the variables that these layers may write in a call: not trained ones and the states of random seeds."""
    generators = {id(seed): seed for layer in layers for seed in layer._seed_generators}
    shared = get_global_attribute(GLOBAL_SEED_GENERATOR)
    if shared is not None:
        generators[id(shared)] = shared
    states = [seed.state for seed in generators.values()]
    variables = [*(variable for layer in layers for variable in layer._non_trainable_variables), *states]
    return [variable._value for variable in {id(variable): variable for variable in variables}.values()]


@contextmanager
def replaced_relu(replace: Callable[[str, Callable[[Any], Any]], Callable[[Any], Any]]) -> Iterator[None]:
    """Have Keras' layers and functions compute "relu" and "relu6" by `replace(name, original)` while it lasts."""
    originals = {name: getattr(backend.nn, name) for name in ("relu", "relu6")}
    for name, original in originals.items():
        setattr(backend.nn, name, replace(name, original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(backend.nn, name, original)


@contextmanager
def created_layers(created: Callable[[Any], None]) -> Iterator[None]:
    """Call `created` with every layer when Keras has given it its name and policy, for as long as the context lasts."""
    original = Layer.__init__

    def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        created(self)

    Layer.__init__ = initialize
    try:
        yield
    finally:
        Layer.__init__ = original
