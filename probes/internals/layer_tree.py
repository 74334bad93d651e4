"""How Keras holds layers and variables: every layer of a model with a path for its id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
from keras.src.models.functional import Functional

from precscope.policy import MODEL

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "BOOKKEEPING",
    "MODEL_ID",
    "functional_inside",
    "has_named_layers",
    "input_structure",
    "own_variables",
    "state_variables",
    "walk_layers",
]

#: Attributes that hold Keras' own lists of what a model or layer has in other attributes.
BOOKKEEPING = ("_layers", "_metrics", "_tracker", "_parent", "_loss_tracker", "optimizer")
#: Id of the model itself, for variables that no layer owns.
MODEL_ID = MODEL


def walk_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield (id, layer) for every layer inside `model`, each once, owners before what they own.

    The id is the path by ownership: a layer's name inside a Sequential or functional model (where names are unique),
    and the attribute that holds it elsewhere ("encoder/blocks/0/attention"). Keras' own `layer.path` will not do: it is
    None for sub-layers without variables, and equal for equally named layers of two nested models.
    """
    seen = {id(model)}

    def walk(owner: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for name, layer in _children(owner):
            if id(layer) not in seen:
                seen.add(id(layer))
                path = f"{prefix}{name}"
                yield path, layer
                yield from walk(layer, f"{path}/")

    yield from walk(model, "")


def _children(owner: Any) -> Iterator[tuple[str, Any]]:
    is_named = has_named_layers(owner)
    found = {id(layer): layer.name for layer in owner.layers} if is_named else {}
    taken = set(found.values())
    if is_named:
        yield from ((layer.name, layer) for layer in owner.layers)
    for attribute, value in list(vars(owner).items()):
        if attribute in BOOKKEEPING or attribute.startswith("_self_"):  # Keras' and TensorFlow's own lists
            continue
        if is_named and attribute.startswith("_"):  # beside its layers only what a user added
            continue
        for name, layer in _layers_in(attribute, value):
            if id(layer) not in found:
                yield f"{name}:own" if name in taken else name, layer
                found[id(layer)] = name
                taken.add(name)
    for position, layer in enumerate(() if is_named else getattr(owner, "_layers", ())):  # held by nothing searched
        if id(layer) not in found:
            yield f"{layer.name}:{position}", layer


def has_named_layers(layer: Any) -> bool:
    """Tell whether `layer` is a Sequential or functional model: it only passes tensors from layer to layer."""
    return isinstance(layer, (keras.Sequential, Functional))


def input_structure(model: Any) -> Any:
    """Return the symbolic inputs of a Sequential or functional model, in the structure in which a call takes them."""
    symbolic = model.inputs
    if len(symbolic) == 1 and isinstance(model, keras.Sequential):
        return symbolic[0]
    return getattr(model, "_inputs_struct", symbolic)


def functional_inside(model: Any) -> Any:
    """Return the functional model that a built Sequential keeps for itself; None of any other model."""
    return getattr(model, "_functional", None)


def _layers_in(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if isinstance(value, keras.layers.Layer):
        yield name, value
    elif depth < 4 and isinstance(value, dict):
        for key, item in value.items():
            yield from _layers_in(f"{name}/{key}", item, depth + 1)
    elif depth < 4 and isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from _layers_in(f"{name}/{position}", item, depth + 1)


def own_variables(layer: Any) -> list[Any]:
    """Return the variables that `layer` itself owns, not those of its sub-layers."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def state_variables(model: Any) -> list[tuple[str, Any]]:
    """Return (name, variable) of all that a step of a built model depends on: weights, statistics, states of seeds.

    Metrics are left out. The name is the variable's path, numbered where several have the same.
    """
    metrics = {id(variable) for variable in getattr(model, "metrics_variables", ())}
    named: dict[str, Any] = {}
    numbers: dict[str, int] = {}  # the last one that was given to a path
    for variable in model.variables:
        if id(variable) in metrics:
            continue
        name = path = variable.path
        while name in named:
            numbers[path] = numbers.get(path, 1) + 1
            name = f"{path}:{numbers[path]}"
        named[name] = variable
    return list(named.items())
