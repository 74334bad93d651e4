"""Exceptions as one line of text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest

from precscope.error_text import error_in_a_line, failure_in_a_line, where_it_failed
from precscope.errors import OptionsError
from precscope.json_text import json_text
from precscope.options import resolve_options


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


@dataclass
class Holder:
    value: Any


def test_a_failure_names_the_line_of_precscope_that_it_passed() -> None:
    with pytest.raises(TypeError) as caught:
        json_text("x", 1, Holder(object()))  # passes a line of PrecScope's, and is raised in the standard library
    assert re.fullmatch(r"TypeError: Objec \(json_text\.py:\d+\)", failure_in_a_line(caught.value, 5))
    with pytest.raises(OptionsError) as told:
        resolve_options(None, every="often")
    assert failure_in_a_line(told.value) == error_in_a_line(told.value)
    with pytest.raises(ZeroDivisionError) as of_the_user:
        _ = 1 / 0
    assert failure_in_a_line(of_the_user.value) == "ZeroDivisionError: division by zero"
    assert "(test_error_text.py:" in where_it_failed(of_the_user.value)
