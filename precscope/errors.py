"""The errors that PrecScope raises on purpose.

Every message says what happened, what was expected, what was received and what to do next. The command line catches
`PrecScopeError` once, prints its message on one line and returns exit code 2; anything else is a bug.
"""

from __future__ import annotations

__all__ = [
    "AnotherModelError",
    "OptionsError",
    "PolicyError",
    "PrecScopeError",
    "RunDirectoryError",
    "SessionError",
    "TraceError",
]


class PrecScopeError(Exception):
    """Base of all errors that PrecScope raises on purpose."""


class OptionsError(PrecScopeError):
    """An option has an unknown name or a value that it cannot take."""


class PolicyError(PrecScopeError):
    """A dtype policy file cannot be read, does not fit the model, or a layer cannot be given its policy."""


class AnotherModelError(PolicyError):
    """A policy, or a run, is of another model than the one at hand.

    Attributes:
        differences: What the model at hand has beside and lacks, as a sentence that goes on after a colon.
    """

    def __init__(self, message: str, differences: str) -> None:
        super().__init__(message)
        self.differences = differences


class RunDirectoryError(PrecScopeError):
    """A run directory cannot be created, written or read."""


class SessionError(PrecScopeError):
    """A profiling session was asked for something that it cannot do."""


class TraceError(PrecScopeError):
    """A profiler trace cannot be read."""
