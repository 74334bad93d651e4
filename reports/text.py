"""Names and numbers as text for people."""

from __future__ import annotations

import math
import unicodedata

from precscope.advice.wording import plain

__all__ = [
    "ABSENT",
    "bits",
    "byte_size",
    "compact",
    "cut",
    "duration",
    "percent",
    "printable",
    "shorten",
    "significant",
]

ABSENT = "–"


def printable(text: str) -> str:
    """Return `text` with every character that could act on a terminal (escapes, newlines, ...) spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shorten(text: str, cells: int) -> str:
    """Return `text` in at most `cells` terminal cells; what is cut is the beginning, since names end specifically."""
    if sum(map(_cells, text)) <= cells:
        return text
    kept, room = "", cells - 1
    for character in reversed(text):
        room -= _cells(character)
        if room < 0:
            break
        kept = character + kept
    return f"…{kept}"


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, characters: int) -> str:
    """Return the beginning of a long text."""
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def percent(part: float | None) -> str:
    """Return a share in at most six characters: "0%", "<0.1%", "2.5%", "31%"."""
    if part is None:
        return ABSENT
    if 0 < part < 0.001:
        return "<0.1%"
    if 0.995 <= part < 1:
        return ">99%"
    return f"{100 * part:.1f}%" if 0 < part < 0.0995 else f"{100 * part:.0f}%"


def bits(value: float | None) -> str:
    """Return "14.4 bit"; without a fraction from 100 on."""
    if value is None:
        return ABSENT
    return f"{value:.0f} bit" if abs(value) >= 99.95 else f"{value:.1f} bit"


def significant(value: float | None) -> str:
    """Return a number in at most nine characters, NaN and infinities by name."""
    if value is None:
        return ABSENT
    return plain(value) if math.isfinite(value) else str(value)


def compact(count: int) -> str:
    """Return a count in at most six characters: "12,345", "1.2e6"."""
    return f"{count:,}" if count < 100_000 else f"{count:.1e}".replace("e+0", "e").replace("e+", "e")


def duration(seconds: float | None) -> str:
    """Return "850 ms", "58 s", "2 min 14 s" or "3 h 5 min"."""
    if seconds is None or seconds < 0:
        return ABSENT
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def byte_size(number: int | None) -> str:
    """Return "80 GiB"."""
    if number is None:
        return ABSENT
    size, units = float(number), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{plain(size)} {units[0]}"
