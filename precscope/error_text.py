"""An exception as a line of text, for notices and messages."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

from precscope.errors import PrecScopeError

__all__ = ["error_in_a_line", "failure_in_a_line", "where_it_failed"]

_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;]*m")  # Keras prints its errors in bold
_PACKAGE = str(Path(__file__).parent)


def error_in_a_line(error: BaseException, most: int | None = None) -> str:
    """Return an exception's type and message in one line, "ValueError: no", the message cut after `most` characters."""
    words = " ".join(_TERMINAL_CODES.sub("", str(error)).split())[:most]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def failure_in_a_line(error: BaseException, most: int | None = None) -> str:
    """Return `error_in_a_line`, with the line of PrecScope's own code where it passed: "ValueError: no (taps.py:12)".

    For what PrecScope catches so that the training goes on: no traceback is shown, and a report of it needs one. Its
    own errors (PrecScopeError) say what to do, and need none.
    """
    if isinstance(error, PrecScopeError):
        return error_in_a_line(error, most)
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(_PACKAGE)]
    return f"{error_in_a_line(error, most)}{_place(own)}"


def where_it_failed(error: BaseException) -> str:
    """Return an exception in a line: its type, its message, and the line of code that raised it."""
    text = "".join(traceback.format_exception_only(error)).strip().splitlines()
    return f"{' '.join(line.strip() for line in text)}{_place(traceback.extract_tb(error.__traceback__))}"


def _place(frames: list[traceback.FrameSummary]) -> str:
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
