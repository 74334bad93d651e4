"""What happens to a writer in a process that was forked, as data loaders fork their workers.

SQLite's connections do not outlive a fork: the child shares the file's offset and the log's index with its parent, and
has none of its locks. So a fork waits for a transaction at hand to end, and the child never touches the connection: it
is not even closed, for closing one may write.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import threading

__all__ = ["guard"]


class _Guarded(Protocol):
    """A writer: its lock is held while it writes."""

    lock: threading.Lock

    def disown(self) -> Any:
        """Give up the connection, in the child, and return it."""


_guarded: weakref.WeakSet[Any] = weakref.WeakSet()
_held: list[_Guarded] = []


def guard(writer: _Guarded) -> None:
    """Let no fork happen while `writer` writes, and keep its connection from children."""
    _guarded.add(writer)


def _before() -> None:
    for writer in list(_guarded):
        writer.lock.acquire()
        _held.append(writer)


def _after_in_parent() -> None:
    while _held:
        _held.pop().lock.release()


def _after_in_child() -> None:
    while _held:
        writer = _held.pop()
        connection = writer.disown()
        if connection is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))  # so that it is never closed
        writer.lock.release()
    _guarded.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
