"""Optimizers and their loss scale: what they count and hold, which are there, wrapping one for good."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from precscope.probes.internals.layer_calls import set_instance_attribute
from precscope.probes.internals.layer_tree import BOOKKEEPING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "growth_counter",
    "growth_steps",
    "initial_scale",
    "inner_optimizer",
    "is_dynamic",
    "leading_optimizer",
    "loss_scale",
    "loss_scaling",
    "multiplier",
    "optimized_variables",
    "optimizers_of",
    "scale_variable",
    "set_initial_scale",
    "update_counter",
    "updates_every_step",
    "wrap_optimizer",
    "wrapped_optimizer",
]


def is_dynamic(optimizer: Any) -> bool:
    """Tell whether `optimizer` is Keras' LossScaleOptimizer."""
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def inner_optimizer(optimizer: Any) -> Any:
    """Return the optimizer that updates the weights."""
    return optimizer.inner_optimizer if is_dynamic(optimizer) else optimizer


def loss_scale(optimizer: Any) -> Any:
    """Return the loss scale as a float32 tensor, a float, or None where the loss is not scaled."""
    if is_dynamic(optimizer):
        return optimizer.dynamic_scale.value if optimizer.built else float(optimizer.initial_scale)
    factor = getattr(optimizer, "loss_scale_factor", None)
    return None if factor is None else float(factor)


def multiplier(optimizer: Any) -> float:
    """Return the number by which the loss is multiplied now, 1 where it is not scaled; waits for the device."""
    scale = loss_scale(optimizer)
    return 1.0 if scale is None else float(tf.identity(scale))  # a strategy's variable is no number


def scale_variable(optimizer: Any) -> Any:
    """Return the variable that holds a dynamic loss scale; None before it is built and without one."""
    return optimizer.dynamic_scale.value if is_dynamic(optimizer) and optimizer.built else None


def loss_scaling(optimizer: Any) -> str:
    """Return how the loss is scaled: "dynamic", "static" (a fixed `loss_scale_factor`) or "none"."""
    if is_dynamic(optimizer):
        return "dynamic"
    return "none" if getattr(optimizer, "loss_scale_factor", None) is None else "static"


def growth_counter(optimizer: Any) -> int | None:
    """Return how many finite steps have passed since the dynamic scale last moved."""
    return int(optimizer.step_counter.numpy()) if is_dynamic(optimizer) and optimizer.built else None


def growth_steps(optimizer: Any) -> int | None:
    """Return after how many finite steps in a row a dynamic scale doubles; None without one."""
    return int(optimizer.dynamic_growth_steps) if is_dynamic(optimizer) else None


def initial_scale(optimizer: Any) -> float | None:
    """Return the scale that a dynamic one begins with; None without one."""
    return float(optimizer.initial_scale) if is_dynamic(optimizer) else None


def update_counter(optimizer: Any) -> Any:
    """Return the variable that counts applied updates, those that only accumulate gradients among them.

    Not the public `iterations`: where gradients are accumulated that is a tensor, computed anew at each look.
    """
    return inner_optimizer(optimizer)._iterations.value


def updates_every_step(optimizer: Any) -> bool:
    """Tell whether every applied step updates the weights: not so while gradients are accumulated over several."""
    return not getattr(inner_optimizer(optimizer), "gradient_accumulation_steps", None)


def optimizers_of(model: Any) -> list[Any]:
    """Return the optimizers that `model` holds: the one it was compiled with first, then its other attributes.

    A model with a train step of its own may have several (a GAN's), and may never use the one that Keras gave it.
    """
    found = [getattr(model, "optimizer", None)]
    for name, value in list(vars(model).items()):
        if name not in BOOKKEEPING:
            found += (
                value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
            )
    return list({id(item): item for item in found if isinstance(item, keras.optimizers.Optimizer)}.values())


def leading_optimizer(optimizers: Sequence[Any]) -> Any:
    """Return the first optimizer that was used: Keras builds it then. Before any was, the first."""
    return next((optimizer for optimizer in optimizers if optimizer.built), optimizers[0])


def optimized_variables(optimizer: Any) -> list[Any]:
    """Return the variables that a built optimizer updates, in the order of its gradients."""
    return list(optimizer._trainable_variables)


def wrapped_optimizer(optimizer: Any, initial_scale: float | None) -> Any:
    """Return `optimizer` in a LossScaleOptimizer that goes on with its iterations and slots."""
    scale = {} if initial_scale is None else {"initial_scale": initial_scale}
    outer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale_optimizer", **scale)
    if optimizer.built:
        # Not every optimizer of a user's own lets itself be built twice.
        undo = set_instance_attribute(optimizer, "build", lambda variables: None)
        try:
            outer.build(optimized_variables(optimizer))
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
    model.optimizer = wrapped_optimizer(before, initial_scale)
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
