"""PrecScope: which layers of a Keras model lose precision in mixed-precision training, why, and what to do.

Importing this package loads neither TensorFlow nor Keras; `profile` loads them on its first call.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from precscope.errors import OptionsError, PolicyError, PrecScopeError, RunDirectoryError, SessionError

if TYPE_CHECKING:
    from precscope.options import Options
    from precscope.probes.apply_policy import apply_policy
    from precscope.probes.callback import Callback
    from precscope.probes.legacy import legacy_hints
    from precscope.probes.policy_scope import policy_scope
    from precscope.probes.session import Session, profile
    from precscope.reader import Run, open_run

__version__ = "0.1.0"

__all__ = [
    "Callback",
    "Options",
    "OptionsError",
    "PolicyError",
    "PrecScopeError",
    "Run",
    "RunDirectoryError",
    "Session",
    "SessionError",
    "__version__",
    "apply_policy",
    "legacy_hints",
    "open_run",
    "policy_scope",
    "profile",
]

_HOMES = {
    "Callback": "precscope.probes.callback",
    "Options": "precscope.options",
    "Run": "precscope.reader",
    "Session": "precscope.probes.session",
    "apply_policy": "precscope.probes.apply_policy",
    "legacy_hints": "precscope.probes.legacy",
    "open_run": "precscope.reader",
    "policy_scope": "precscope.probes.policy_scope",
    "profile": "precscope.probes.session",
}


def __getattr__(name: str) -> Any:
    """Load what needs more than the standard library on first use (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
