"""Does the model's own `train_step` use the loss scale as it must? It is traced, and nothing is computed."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from precscope.lint_result import LintFinding
from precscope.probes import keras_internals
from precscope.probes.scaling_misuse import ScalingWatch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["check_train_step"]


def check_train_step(model: Any, batch: Any) -> list[LintFinding]:
    """Return what is wrong with how one train step scales; `batch` is a tree of `tf.TensorSpec`."""
    optimizer = model.optimizer
    watch = ScalingWatch(optimizer)
    if not optimizer.built:
        optimizer.build(model.trainable_variables)  # as the first step would: a trace may create no variables

    def scale_loss(loss: Any) -> Any:
        result = original_scale(loss)
        watch.scaled(loss, result)
        return result

    def apply(grads: Any, trainable_variables: Any = None) -> Any:
        watch.applied(list(grads))
        return original_apply(grads, trainable_variables)

    original_scale: Callable[..., Any] = optimizer.scale_loss
    original_apply: Callable[..., Any] = optimizer.apply
    with ExitStack() as stack:
        for name, watched in (("scale_loss", scale_loss), ("apply", apply)):
            stack.callback(keras_internals.set_instance_attribute(optimizer, name, watched))
        tf.function(model.train_step, autograph=False).get_concrete_function(batch)
    return [
        LintFinding("loss_scaling_misused", "error", None, f"{head[0].upper()}{head[1:]}.", advice)
        for found in watch.found()
        for head, _, advice in [found.partition(". ")]
    ]
