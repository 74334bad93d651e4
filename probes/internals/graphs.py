"""The graph that is being built, and where in the user's code."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow.python.framework import ops as tf_ops
from tensorflow.python.ops.control_flow_v2_func_graphs import (
    CondBranchFuncGraph,
    WhileBodyFuncGraph,
    WhileCondFuncGraph,
)
from tensorflow.python.util import tf_stack

__all__ = [
    "call_stack",
    "current_graph",
    "in_control_flow_of",
    "operation_count",
    "operations_since",
]

_CONTROL_FLOW = (WhileBodyFuncGraph, WhileCondFuncGraph, CondBranchFuncGraph)


def current_graph() -> Any:
    """Return the graph that is being built, or None when executing eagerly."""
    return None if tf.executing_eagerly() else tf_ops.get_default_graph()


def operation_count(graph: Any) -> int:
    """Return how many operations a graph has; 0 where it is None."""
    return 0 if graph is None else int(graph.num_operations())


def operations_since(graph: Any, count: int) -> list[Any]:
    """Return the operations that a graph got since it had `count` of them; none where it is None.

    `get_operations` copies the list of all: asked for every layer, that takes the square of their number.
    """
    return [] if graph is None else list(graph.operations[count:])


def call_stack() -> list[Any]:
    """Return the frames of the call at hand, outermost first; lines that AutoGraph converted are the user's own."""
    return list(tf_stack.extract_stack())


def in_control_flow_of(graph: Any, root: Any) -> bool:
    """Tell whether `graph` is a branch or loop body somewhere inside `root`, with no tf.function in between.

    What a user's own tf.function traces is kept and used again by the plain train function, so nothing may be
    recorded there.
    """
    while isinstance(graph, _CONTROL_FLOW):
        graph = graph.outer_graph
        if graph is root:
            return True
    return False
