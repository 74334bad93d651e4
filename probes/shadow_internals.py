"""The second door to what Keras and TensorFlow do not promise to keep: for a step that is traced beside the training.

It is to leave nothing behind, and to draw the random numbers that it should. As `keras_internals`, read in
Keras 3.15 and TensorFlow 2.21.
"""

from __future__ import annotations

import functools
import inspect
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
from keras.src.backend.tensorflow import random as keras_random
from tensorflow.python.framework.auto_control_deps_utils import get_read_only_resource_input_indices_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["equal_random_draws", "inlined_functions", "kept_losses", "with_mask_of", "written_variables"]


def with_mask_of(tensor: Any, other: Any) -> Any:
    """Return `other` with the Keras mask of `tensor`, if that has one."""
    mask = getattr(tensor, "_keras_mask", None)
    if mask is not None:
        other._keras_mask = mask
    return other


def written_variables(concrete: Any) -> list[Any]:
    """Return the variables that a concrete function may write, as TensorFlow's own ordering of reads and writes has it.

    An op of which TensorFlow does not know that it only reads counts as one that writes.
    """
    graph = concrete.graph
    read_only = set(get_read_only_resource_input_indices_graph(graph))
    positions = {id(tensor): position for position, tensor in enumerate(graph.inputs)}
    written = {id(outer) for outer, inner in graph.captures if positions[id(inner)] not in read_only}
    return [variable for variable in graph.variables if id(variable.handle) in written]


@contextmanager
def inlined_functions() -> Iterator[None]:
    """Trace no tf.function of the user's own meanwhile: what they do becomes part of the graph at hand.

    Each would keep what it traced, with other policies and without its update, and the training would use it again.
    """
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


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


@contextmanager
def equal_random_draws() -> Iterator[None]:
    """Let Keras' random functions draw in float32, whatever dtype is asked for, in this thread.

    From equal seeds, TensorFlow draws other numbers in float16 than in float32. Drawn in float32 and rounded, a mask or
    a noise is the same in both.
    """
    thread = threading.get_ident()
    drawn: dict[str, Callable[..., Any]] = {"dropout": _dropout_drawn_in_float32}
    drawn |= dict.fromkeys(("normal", "truncated_normal", "uniform", "gamma", "beta", "binomial"), _drawn_in_float32)
    with ExitStack() as stack:
        for name, draw in drawn.items():
            original = getattr(keras_random, name)
            stack.callback(setattr, keras_random, name, original)
            setattr(keras_random, name, _in_thread(thread, original, functools.partial(draw, original)))
        yield


def _in_thread(thread: int, original: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def chosen(*args: Any, **kwargs: Any) -> Any:
        return (other if threading.get_ident() == thread else original)(*args, **kwargs)

    return chosen


def _drawn_in_float32(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    arguments = inspect.signature(original).bind(*args, **kwargs).arguments
    dtype = keras.backend.standardize_dtype(arguments.get("dtype") or keras.config.floatx())
    if dtype not in ("float16", "bfloat16"):
        return original(*args, **kwargs)
    for name in ("alpha", "beta", "counts", "probabilities", "mean", "stddev", "minval", "maxval"):
        if tf.is_tensor(arguments.get(name)):
            arguments[name] = tf.cast(arguments[name], tf.float32)
    return tf.cast(original(**{**arguments, "dtype": "float32"}), dtype)


def _dropout_drawn_in_float32(
    original: Callable[..., Any], inputs: Any, rate: Any, noise_shape: Any = None, seed: Any = None
) -> Any:
    if inputs.dtype == tf.float32 or rate in (0.0, 1.0):
        return original(inputs, rate, noise_shape, seed)
    kept = original(tf.ones_like(inputs, tf.float32), rate, noise_shape, seed) != 0
    return tf.where(kept, inputs * tf.cast(1.0 / (1.0 - rate), inputs.dtype), tf.zeros_like(inputs))
