"""TensorFlow's profiler: whether a session of somebody else's runs."""

from __future__ import annotations

import sys

__all__ = ["holds_no_session"]


def holds_no_session() -> bool:
    """Tell whether TensorFlow's Python API certainly holds no profiler session; False where it keeps them elsewhere."""
    module = sys.modules.get("tensorflow.python.profiler.profiler_v2")
    return module is not None and getattr(module, "_profiler", module) is None
