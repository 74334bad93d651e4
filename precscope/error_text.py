"""An exception as a line of text, for notices and messages."""

from __future__ import annotations

import re

__all__ = ["error_in_a_line"]

_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;]*m")  # Keras prints its errors in bold


def error_in_a_line(error: BaseException, most: int | None = None) -> str:
    """Return an exception's type and message in one line, "ValueError: no", the message cut after `most` characters."""
    words = " ".join(_TERMINAL_CODES.sub("", str(error)).split())[:most]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
