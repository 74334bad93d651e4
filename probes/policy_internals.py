"""What Keras does not promise to keep, for policies that are applied for good: optimizer, saving, traced functions.

Beside `keras_internals`, which is long enough; read in Keras 3.15.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import keras
from keras.src.layers.layer import Layer

from precscope.probes import keras_internals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "created_layers",
    "forget_traced_functions",
    "set_initial_scale",
    "set_saved_policies",
    "wrap_optimizer",
    "wrapped",
]

_ATTENTION = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
_SERIALIZES_ITS_LAYERS = (
    keras.layers.Wrapper,
    keras.layers.Bidirectional,
    keras.layers.TimeDistributed,
    keras.layers.StackedRNNCells,
    keras.layers.RNN,
)


def forget_traced_functions(model: Any) -> None:
    """Let `fit`, `evaluate` and `predict` trace anew: what was traced keeps the dtypes that it was traced in."""
    for name in ("train_function", "test_function", "predict_function"):
        if hasattr(model, name):
            setattr(model, name, None)


def wrapped(optimizer: Any, initial_scale: float | None) -> Any:
    """Return `optimizer` in a LossScaleOptimizer that goes on with its iterations and slots."""
    scale = {} if initial_scale is None else {"initial_scale": initial_scale}
    outer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale_optimizer", **scale)
    if optimizer.built:
        # Not every optimizer of a user's own lets itself be built twice.
        undo = keras_internals.set_instance_attribute(optimizer, "build", lambda variables: None)
        try:
            outer.build(keras_internals.optimized_variables(optimizer))
        finally:
            undo()
    return outer


def wrap_optimizer(model: Any, initial_scale: float | None) -> Callable[[], None]:
    """Wrap the optimizer that a model was compiled with, so that it is saved wrapped; return what undoes it.

    Keras keeps what `compile` was given beside it, and that is what a saved model is compiled with again.
    """
    before = model.optimizer
    config = getattr(model, "_compile_config", None)
    saved = None if config is None else dict(config.config)
    model.optimizer = wrapped(before, initial_scale)
    if config is not None:
        config.config["optimizer"] = model.optimizer

    def undo() -> None:
        model.optimizer = before
        if config is not None and saved is not None:
            config.config.update(saved)

    return undo


def set_initial_scale(optimizer: Any, initial_scale: float) -> None:
    """Let a LossScaleOptimizer that has made no step yet begin with this scale."""
    optimizer.initial_scale = initial_scale
    if optimizer.built:
        optimizer.dynamic_scale.assign(initial_scale)


def set_saved_policies(layer: Any) -> tuple[bool, Callable[[], None]]:
    """Let a layer's configuration carry the policies of its sub-layers, where it can; return whether, and an undo.

    A saved model holds what `get_config` says. Containers and wrappers say it of the layers inside. Keras' other layers
    make theirs anew, with their own policy. Attention can be told more: its policy may be a DTypePolicyMap by path,
    whose default is what sub-layers without a path (softmax, dropout) get.
    """
    own = keras_internals.own_policy(layer)
    inside = [sub for _, sub in keras_internals.walk_layers(layer)]
    if keras_internals.has_named_layers(layer) or isinstance(layer, _SERIALIZES_ITS_LAYERS):
        return True, lambda: None
    alike = all(keras_internals.own_policy(sub).name == own.name for sub in inside)
    if not isinstance(layer, _ATTENTION) or alike:
        return alike and type(layer).__module__.startswith("keras."), lambda: None
    without_path = {keras_internals.own_policy(sub).name for sub in inside if not sub.path}
    if layer.path is None or len(without_path) > 1:
        return False, lambda: None
    by_path = {sub.path: keras_internals.own_policy(sub) for sub in (layer, *inside) if sub.path}
    policies = keras.dtype_policies.DTypePolicyMap(without_path.pop() if without_path else own.name, by_path)
    return True, keras_internals.set_own_policy(layer, policies)


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
