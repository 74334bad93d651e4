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
from keras.src.backend.common.global_state import get_global_attribute
from keras.src.backend.common.variables import AutocastScope
from keras.src.backend.tensorflow import random as keras_random
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR
from tensorflow.python.framework.auto_control_deps_utils import get_read_only_resource_input_indices_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "assign_variable",
    "call_state",
    "call_under_policy",
    "equal_random_draws",
    "float32_compute_policy",
    "inlined_functions",
    "kept_losses",
    "read_variable",
    "uneven_draws",
    "with_mask_of",
    "written_variables",
]


def with_mask_of(tensor: Any, other: Any) -> Any:
    """Return `other` with the Keras mask of `tensor`, if that has one."""
    mask = getattr(tensor, "_keras_mask", None)
    if mask is not None:
        other._keras_mask = mask
    return other


def written_variables(concrete: Any) -> list[Any]:
    """Return the handles of the variables that a concrete function may write, whosever they are.

    They follow from TensorFlow's own ordering of reads and writes: an op of which it does not know that it only reads
    counts as one that writes. `graph.variables` will not do, it lacks what is assigned and never read.
    """
    graph = concrete.graph
    read_only = set(get_read_only_resource_input_indices_graph(graph))
    positions = {id(tensor): position for position, tensor in enumerate(graph.inputs)}
    return [
        outer
        for outer, inner in graph.captures
        if outer.dtype == tf.resource and positions[id(inner)] not in read_only and _variable_dtype(outer) is not None
    ]


def _variable_dtype(handle: Any) -> Any:
    """Return the dtype of the variable behind a handle; None where that is no variable, but a table, say."""
    data = getattr(handle, "_handle_data", None)
    return tf.as_dtype(data.shape_and_type[0].dtype) if data is not None and data.shape_and_type else None


def read_variable(handle: Any) -> Any:
    """Return a copy of the value of the variable behind a handle."""
    return tf.identity(tf.raw_ops.ReadVariableOp(resource=handle, dtype=_variable_dtype(handle)))


def assign_variable(handle: Any, value: Any) -> None:
    """Give the variable behind a handle a value."""
    tf.raw_ops.AssignVariableOp(resource=handle, value=value)


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


_NARROW_ENUMS = (tf.float16.as_datatype_enum, tf.bfloat16.as_datatype_enum)
_STATEFUL_DRAWS = (
    *("RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal", "RandomShuffle"),
    *("RandomGammaV2", "RandomPoissonV2", "Multinomial", "ParameterizedTruncatedNormal"),
)


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


def call_under_policy(layer: Any, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Return what `layer.__call__` would make of the arguments by `call` under the layer's present dtype policy.

    Only the casts are made: of the inputs, and of the variables. No mask is passed on, no loss of an activity
    regularizer added: that is done by the call of the layer around this one.
    """

    def convert(x: Any) -> Any:
        return layer.dtype_policy.convert_input(x, layer.autocast, layer.input_dtype)

    if layer._convert_input_args:
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


def float32_compute_policy(layer: Any) -> Any:
    """Return a dtype policy, without a name in Keras, that computes in float32 with the variables as they are."""
    policy = keras.dtype_policies.DTypePolicy("float32")
    policy._variable_dtype = layer.variable_dtype
    return policy
