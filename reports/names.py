"""Layer ids in a column of a table: as much as fits, and different names still different."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from precscope.reports.text import shorten

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["fit_names"]


def fit_names(names: Sequence[str], cells: int) -> list[str]:
    """Return `names`, each in at most `cells` terminal cells.

    Of a long one the end is shown, which says most ("…/attention/query"). Where that makes different names look
    alike, the parts in which their paths differ are shown, too ("block_3/…/energy").
    """
    alike: dict[str, set[str]] = defaultdict(set)
    for name in names:
        alike[_grown(name.split("/"), {1}, cells)].add(name)
    shown = {}
    for short, group in alike.items():
        for name in group:
            shown[name] = short if len(group) == 1 else _apart(name, group, cells)
    return [shown[name] for name in names]


def _apart(name: str, group: set[str], cells: int) -> str:
    """Return `name` with the parts in which it differs from the others of `group`, where they fit."""
    parts = name.split("/")
    others = [other.split("/") for other in group if other != name]
    places = range(1, len(parts) + 1)
    differing = {place for place in places if any(other[-place:][:1] != parts[-place:][:1] for other in others)}
    return _grown(parts, {1, *differing}, cells)


def _grown(parts: Sequence[str], kept: set[int], cells: int) -> str:
    """Return the path of the parts in `kept`, counted from the end, and as many before the last as fit."""
    fitting = shorten("/".join(parts), cells)
    for place in range(1, len(parts) + 1):
        kept = kept | {place}
        candidate = _with_gaps(parts, kept)
        if shorten(candidate, cells) != candidate:
            break
        fitting = candidate
    return fitting


def _with_gaps(parts: Sequence[str], kept: set[int]) -> str:
    """Return the path with "…" for each row of parts that are not in `kept`, which counts from the end."""
    shown: list[str] = []
    for index, part in enumerate(parts):
        if len(parts) - index in kept:
            shown.append(part)
        elif not shown or shown[-1] != "…":
            shown.append("…")
    return "/".join(shown)
