"""Lines of the terminal report: headings, wrapped paragraphs, notes and small graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from precscope.reports.palette import BOLD, FAINT

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["graph", "heading", "note", "paragraph"]

_WRAPPER = Console(quiet=True, highlight=False, markup=False, emoji=False)
_LABEL = 11


def heading(title: str, width: int, aside: str = "") -> Iterator[Text]:
    """Yield an empty line and a title with a rule to the right edge, `aside` at its end."""
    yield Text()
    line = Text.assemble((title, BOLD), " ", ("─" * max(0, width - len(title) - len(aside) - 2), FAINT))
    yield line.append(f" {aside}", FAINT) if aside else line.append("─", FAINT)


def paragraph(text: Text, width: int, first: Text | None = None, rest: Text | None = None) -> Iterator[Text]:
    """Yield `text` wrapped to `width`, the first line behind `first`, the others behind `rest` (or `first` again)."""
    first = first or Text()
    rest = rest or first
    lines = text.wrap(_WRAPPER, max(width - max(first.cell_len, rest.cell_len), 10))
    for number, line in enumerate(lines):
        line.rstrip()
        yield Text.assemble(rest if number else first, line)


def note(label: str, text: Text, width: int) -> Iterator[Text]:
    """Yield `text` wrapped beside a faint label."""
    yield from paragraph(text, width, Text(f"{label:<{_LABEL}}", FAINT), Text(" " * _LABEL))


def graph(label: str, start: str, line: Text, end: str = "") -> Text:
    """Return a line of characters over time between its first and its last value."""
    joined = Text.assemble((f"{label:<{_LABEL}}", FAINT), f"{start:>9} ", line, f" {end}")
    joined.rstrip()
    return joined
