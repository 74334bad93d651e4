"""tf.functions: their options and converted bodies, and the variables that a traced one may write."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig
from tensorflow.python.eager import context as eager_context
from tensorflow.python.framework.auto_control_deps_utils import get_read_only_resource_input_indices_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "assign_variable",
    "clone_function",
    "converted_function",
    "inlined_functions",
    "is_compiled_by_xla",
    "is_tf_function",
    "optimized_once",
    "read_variable",
    "without_retracing_warning",
    "written_variables",
]


def is_tf_function(function: Any) -> bool:
    """Tell whether `function` is a tf.function, which `clone_function` takes."""
    return hasattr(function, "python_function") and hasattr(function, "_clone")


def without_retracing_warning(function: Any) -> Any:
    """Return `function`, a tf.function that is meant to be traced for each new set of shapes.

    TensorFlow counts the tracings of one Python function over the whole process, and after a few models it would warn a
    user of a function that is not theirs.
    """
    if hasattr(function, "_omit_frequent_tracing_warning"):
        function._omit_frequent_tracing_warning = True
    return function


def clone_function(function: Any, body: Callable[..., Any]) -> Any:
    """Return a tf.function with the options of `function` (jit_compile, input_signature, ...) and another body.

    `body` is called with the converted Python function of `function` as its first argument.
    """
    python_function = converted_function(function)

    @functools.wraps(function.python_function)
    def cloned(*args: Any, **kwargs: Any) -> Any:
        return body(python_function, *args, **kwargs)

    return function._clone(tf.autograph.experimental.do_not_convert(cloned))


def converted_function(function: Any) -> Callable[..., Any]:
    """Return the Python function of a tf.function, converted by AutoGraph where the tf.function asks for that."""
    python_function: Callable[..., Any] = function.python_function
    if not getattr(function, "_autograph", True):
        return python_function
    context = tf.__internal__.autograph.control_status_ctx()
    converted: Callable[..., Any] = tf.__internal__.autograph.tf_convert(python_function, context)
    return converted


def is_compiled_by_xla(function: Any) -> bool:
    """Tell whether a tf.function was made with `jit_compile=True`."""
    return bool(getattr(function, "_jit_compile", False))


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
def optimized_once() -> Iterator[None]:
    """Let TensorFlow's graph optimizer go once, not twice, over a tf.function that this thread calls meanwhile.

    The optimizer runs at the first call, and again where the function is later called outside of this context.
    """
    context = eager_context.context()
    before = context.function_call_options
    config = config_pb2.ConfigProto()
    config.ParseFromString(before.config_proto_serialized)
    config.graph_options.rewrite_options.meta_optimizer_iterations = RewriterConfig.ONE
    context.function_call_options = eager_context.FunctionCallOptions(before.executor_type, config)
    try:
        yield
    finally:
        context.function_call_options = before


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
