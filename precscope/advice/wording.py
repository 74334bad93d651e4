"""Words and numbers in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["counted", "listed", "of_samples", "plain", "quoted", "share"]

_LONGEST_NAME = 60


def quoted(name: str) -> str:
    """Return `name` in quotes; of a very long one its end, which tells most."""
    return f"'{name}'" if len(name) <= _LONGEST_NAME else f"'…{name[1 - _LONGEST_NAME :]}'"


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return up to `most` quoted names and how many more there are: "'a', 'b' and 2 more"."""
    shown = [quoted(name) for name in names[:most]]
    if len(names) > most:
        return f"{', '.join(shown)} and {len(names) - most} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def counted(number: int, noun: str) -> str:
    """Return "1 step", "2,000 steps"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def plain(value: float) -> str:
    """Return a number with three significant digits, written out where it is neither tiny nor huge."""
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:.2e}"


def share(part: float) -> str:
    """Return a share as a percentage; "<0.01%" where it would show as zero and is not."""
    if 0 < part < 1e-4:
        return "<0.01%"
    return f"{100 * part:.2f}%" if 0 < part < 0.01 else f"{100 * part:.3g}%"


def of_samples(number: int, total: int, first_step: int) -> str:
    """Return in how many of all sampled steps something was seen, and when first."""
    if total == 1:
        return f"in the only sampled step ({first_step:,})"
    return f"in {number:,} of {counted(total, 'sampled step')}, first at step {first_step:,}"
