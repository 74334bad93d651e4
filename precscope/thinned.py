"""A series of bounded length that still shows its whole course."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Thinned"]

Item = TypeVar("Item")


class Thinned(Generic[Item]):
    """A series that keeps at most `most` items, evenly spread, and always the last.

    When it is full, every second item is dropped, and from then on every second that comes.

    Args:
        most: The largest number of items, an even number.
    """

    def __init__(self, most: int) -> None:
        if most < 2 or most % 2:
            raise ValueError(f"A thinned series holds an even number of items, 2 or more; received {most}.")
        self._most = most
        self._every = 1
        self._seen = 0
        self._kept: list[Item] = []
        self._last: Item | None = None

    def extend(self, items: Iterable[Item]) -> None:
        """Add items in the order of the series."""
        for item in items:
            if self._seen % self._every == 0:
                if len(self._kept) == self._most:
                    del self._kept[1::2]
                    self._every *= 2
                if self._seen % self._every == 0:
                    self._kept.append(item)
            self._seen += 1
            self._last = item

    @property
    def seen(self) -> int:
        """How many items were added."""
        return self._seen

    @property
    def last(self) -> Item | None:
        """The item that was added last; None where there is none."""
        return self._last

    def items(self) -> tuple[Item, ...]:
        """Return what is kept, in order; the last item is always among them."""
        if not self._kept or self._last is self._kept[-1] or self._last is None:
            return tuple(self._kept)
        return (*self._kept, self._last)
