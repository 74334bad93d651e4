"""Exceptions as one line of text."""

from __future__ import annotations

import pytest

from precscope.error_text import error_in_a_line


@pytest.mark.parametrize(
    ("error", "most", "text"),
    [
        (ValueError("no"), None, "ValueError: no"),
        (ValueError("two\n   lines\tof it"), None, "ValueError: two lines of it"),
        (TypeError("\x1b[1mbold\x1b[0m"), None, "TypeError: bold"),
        (KeyboardInterrupt(), None, "KeyboardInterrupt"),
        (OSError("abcdef"), 3, "OSError: abc"),
    ],
)
def test_an_exception_is_one_line(error: BaseException, most: int | None, text: str) -> None:
    assert error_in_a_line(error, most) == text
