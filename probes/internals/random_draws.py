"""Random numbers that are equal in another dtype, and those that no seed holds equal."""

from __future__ import annotations

import functools
import inspect
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
from keras.src.backend.tensorflow import random as keras_random

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "equal_random_draws",
    "uneven_draws",
]

_NARROW_ENUMS = (tf.float16.as_datatype_enum, tf.bfloat16.as_datatype_enum)
_STATEFUL_DRAWS = (
    *("RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal", "RandomShuffle"),
    *("RandomGammaV2", "RandomPoissonV2", "Multinomial", "ParameterizedTruncatedNormal"),
)


def uneven_draws(concrete: Any) -> tuple[str, ...]:
    """Return the types of ops in a concrete function whose random numbers no seed of Keras' holds equal.

    They are TensorFlow's own random ops, which go on with each run, and those that draw in 16 bits.
    """
    found = set()
    definition = concrete.graph.as_graph_def(add_shapes=False)
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    for node in nodes:
        draws_narrow = node.op.startswith("Stateless") and node.attr["dtype"].type in _NARROW_ENUMS
        if draws_narrow or node.op in _STATEFUL_DRAWS:
            found.add(node.op)
    return tuple(sorted(found))


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
