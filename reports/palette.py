"""The colours of the reports: told apart on dark and on light backgrounds, and never the only sign."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from precscope.advice.finding import Severity

__all__ = ["BANDS", "BOLD", "FAINT", "LEVELS", "LINE", "PAGE_BANDS", "PLAIN", "SEVERITIES"]

# For the terminal: fixed colours of the 256-colour table, each with a contrast of at least 3.9 to black and to white.
# The 16 named ones would depend on the terminal's theme: yellow on white is hardly seen.
_RED, _ORANGE, _GREEN, _BLUE, _GREY = "color(160)", "color(166)", "color(28)", "color(32)", "color(244)"

PLAIN, BOLD, FAINT, LINE = "", "bold", _GREY, _BLUE

#: Sign and style of each severity.
SEVERITIES: dict[Severity, tuple[str, str]] = {
    "error": ("✖", f"bold {_RED}"),
    "warning": ("▲", f"bold {_ORANGE}"),
    "info": ("•", _BLUE),
}
#: Sign and style of each verdict.
LEVELS = {
    "good": ("✔", f"bold {_GREEN}"),
    "attention": ("▲", f"bold {_ORANGE}"),
    "bad": ("✖", f"bold {_RED}"),
    "unknown": ("?", f"bold {_GREY}"),
}
#: Style of each band of the exponent picture.
BANDS = {"flushed": _GREY, "subnormal": _ORANGE, "normal": _BLUE, "overflow": f"bold {_RED}", "border": _GREY}

#: Colours of page and figures for light and dark backgrounds: told apart also by the colour-blind (they differ in
#: lightness as well as in hue), and never the only sign.
PAGE_BANDS = {
    "light": {"flushed": "#5b2a6e", "subnormal": "#e39a1c", "normal": "#2a78b8", "overflow": "#b3261e"},
    "dark": {"flushed": "#f3c4ec", "subnormal": "#f2b544", "normal": "#5aa9e6", "overflow": "#ff6f61"},
}
