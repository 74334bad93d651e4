"""Names and sentences as GitHub's Markdown that shows them and does nothing else."""

from __future__ import annotations

import re

from precscope.reports.text import cut, printable

__all__ = ["code", "text"]

_LONGEST = 200
_PUNCTUATION = re.compile(r"([\\`*_\[\]<>#!|~&$])")
# What GitHub finds in the finished text is parted by a space of no width: mentions and addresses.
_FOUND_LATER = re.compile(r"(@|://|www\.)")


def text(words: str) -> str:
    """Return a sentence with everything escaped that Markdown or HTML would act on."""
    return _FOUND_LATER.sub("\\1\u200b", _PUNCTUATION.sub(r"\\\1", printable(words)))


def code(name: str) -> str:
    """Return a name as a code span; of a very long one its beginning. "|" would end a table's cell even there."""
    shown = cut(printable(name), _LONGEST).replace("|", "¦").replace("`", "'")
    return f"`{shown}`" if shown.strip() else "` `"
