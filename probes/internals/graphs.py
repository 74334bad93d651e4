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
]

_CONTROL_FLOW = (WhileBodyFuncGraph, WhileCondFuncGraph, CondBranchFuncGraph)


def current_graph() -> Any:
    """Return the graph that is being built, or None when executing eagerly."""
    return None if tf.executing_eagerly() else tf_ops.get_default_graph()


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
