"""ReLU as a plain step computes it, but whose gradient reads what it put out, in a step that XLA compiles."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from precscope.probes.internals.layer_calls import replaced_relu
from precscope.probes.internals.xla import tie

if TYPE_CHECKING:
    from collections.abc import Callable

    from precscope.probes.recorder import Recorder

__all__ = ["kept_relu"]

_GRADIENTS = {"relu": tf.raw_ops.ReluGrad, "relu6": tf.raw_ops.Relu6Grad}


def kept_relu(recorder: Recorder) -> AbstractContextManager[None]:
    """Return a context in which Keras' ReLU is tied to its output, while `recorder` traces a step that XLA compiles.

    XLA would rather compute a ReLU again than read it, so its gradient reads the ReLU's *input*. In a plain step that
    input is not in memory, it is fused away; in a probed step it is, for its statistic was read from there, and so it
    would live until the backward pass: a second copy of most activations. Values and gradients stay the same.
    """
    if not recorder.in_xla:
        return nullcontext()

    def replace(name: str, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        gradient_of = _GRADIENTS[name]

        def tied(x: Any) -> Any:
            (output,) = tie([original(x)])
            features = tf.stop_gradient(output)  # a ReLU's second derivative is zero
            return tf.identity(output), lambda gradient: gradient_of(gradients=gradient, features=features)

        def relu(x: Any) -> Any:
            is_recorded = tf.is_tensor(x) and x.dtype.is_floating and recorder.place() == "root"
            return tf.custom_gradient(tied)(x) if is_recorded else original(x)

        return relu

    return replaced_relu(replace)
