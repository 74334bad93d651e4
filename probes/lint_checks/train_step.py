"""The model's own `train_step`, traced, and nothing computed: how it uses the loss scale, and in what it has labels."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from precscope.advice.wording import plain
from precscope.formats import FORMATS
from precscope.lint_result import LintFinding
from precscope.probes.code_places import innermost_own_frame, place_of_frame
from precscope.probes.internals.layer_calls import set_instance_attribute
from precscope.probes.scaling_misuse import ScalingWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["check_train_step"]

_HANDING_ON = ("ExpandDims", "Identity", "Reshape", "Squeeze", "StridedSlice")


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
            stack.callback(set_instance_attribute(optimizer, name, watched))
        traced = tf.function(model.train_step, autograph=False).get_concrete_function(batch)
    findings = [
        LintFinding("loss_scaling_misused", "error", None, f"{head[0].upper()}{head[1:]}.", advice)
        for found in watch.found()
        for head, _, advice in [found.partition(". ")]
    ]
    return [*findings, *_labels_cast(traced, batch)]


def _labels_cast(traced: Any, batch: Any) -> Iterator[LintFinding]:
    """Yield one finding where the labels become 16-bit numbers on their way into the loss."""
    if not isinstance(batch, tuple) or len(batch) < 2:
        return
    inputs, labels = len(tf.nest.flatten(batch[0])), len(tf.nest.flatten(batch[1]))
    given = {id(tensor) for tensor in traced.inputs[inputs : inputs + labels]}
    for op in traced.graph.get_operations():
        if op.type in _HANDING_ON and any(id(source) in given for source in op.inputs):
            given.update(map(id, op.outputs))
        if (
            op.type != "Cast"
            or id(op.inputs[0]) not in given
            or op.outputs[0].dtype.name not in ("float16", "bfloat16")
        ):
            continue
        target, source = op.outputs[0].dtype.name, op.inputs[0].dtype.name
        own_frame = innermost_own_frame(list(op.traceback))
        yield LintFinding(
            "labels_cast",
            "warning",
            None,
            f"The labels ({source}) become {target}, which holds whole numbers exactly up to "
            f"{FORMATS[target].largest_exact_integer:,} only and ends at {plain(FORMATS[target].max)}.",
            "Compute the loss in float32: cast the model's output, not the labels.",
            None if own_frame is None else place_of_frame(own_frame),
        )
        return
