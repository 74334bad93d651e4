"""Nearest names, for messages about a name that does not exist."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["did_you_mean"]


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return " Did you mean 'a' or 'b'?" with the candidates nearest to `name`, or "" where none is near."""
    known = list(candidates)
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    near = [by_lower_case[match] for match in get_close_matches(name.lower(), by_lower_case, n=3)]
    # A layer is often asked for by the last part of its path, which difflib finds too far away.
    near += [candidate for candidate in known if candidate.endswith(f"/{name}") and candidate not in near]
    return f" Did you mean {' or '.join(repr(match) for match in near[:3])}?" if near else ""
