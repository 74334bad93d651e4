"""Text and pages made from a run that was read. Nothing here imports a probe or a framework."""

from __future__ import annotations

__all__: list[str] = []
