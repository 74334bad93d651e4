"""Values as cells of a CSV file that spreadsheets, terminals and programs read alike."""

from __future__ import annotations

import math

__all__ = ["csv_text"]

# What a spreadsheet takes for a formula, which could run commands or ask a server.
_FORMULAS = ("=", "+", "-", "@")


def csv_text(value: object) -> object:
    r"""Return the cell for `value`: "" for None, text printable and never a formula, numbers as they are.

    Characters that could act (line ends, escape codes, ...) are spelled out as in Python ("\n"); text that begins
    like a formula gets an apostrophe in front, as spreadsheets write such text.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        return value
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)
    return f"'{text}" if text.startswith(_FORMULAS) else text
