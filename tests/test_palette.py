"""The terminal's colours are seen on dark and on light backgrounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from rich.style import Style

from precscope.reports.palette import BANDS, FAINT, LEVELS, LINE, SEVERITIES

if TYPE_CHECKING:
    from rich.color import Color

STYLES = {
    **{f"band {name}": style for name, style in BANDS.items()},
    **{f"level {name}": style for name, (_, style) in LEVELS.items()},
    **{f"severity {name}": style for name, (_, style) in SEVERITIES.items()},
    "faint": FAINT,
    "line": LINE,
}


def luminance(color: Color) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [part / 255 for part in color.get_truecolor()]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("name", STYLES)
def test_contrast_to_black_and_to_white(name: str) -> None:
    color = Style.parse(STYLES[name]).color
    assert color is not None
    assert color.number is not None
    assert color.number >= 16, "the first 16 colours are whatever the terminal's theme says"
    own = luminance(color)
    assert (own + 0.05) / 0.05 >= 3.5
    assert 1.05 / (own + 0.05) >= 3.5
