"""The subcommands: one module each, whose click command has the module's name and whose docstring is its help."""

from __future__ import annotations

__all__: list[str] = []
