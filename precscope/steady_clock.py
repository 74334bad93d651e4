"""Wall-clock time that neither jumps nor runs backwards: the time at the start, and what a monotonic clock adds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SteadyClock"]


class SteadyClock:
    """Gives seconds since 1970 as of its creation, carried on; when the system's clock is set, it does not follow.

    Args:
        started_unix_s: The time now; None to ask the system.
        monotonic_s: A monotonic clock.
    """

    def __init__(self, started_unix_s: float | None = None, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._started_unix_s = time.time() if started_unix_s is None else started_unix_s
        self._monotonic_s = monotonic_s
        self._started_s = monotonic_s()

    def __call__(self) -> float:
        """Return the time in seconds since 1970."""
        return self._started_unix_s + (self._monotonic_s() - self._started_s)
