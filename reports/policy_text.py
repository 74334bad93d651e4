"""The policy that a verdict asks for, as lines to copy into the code that builds the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precscope.advice.wording import counted
from precscope.reports.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.advice import Evidence

__all__ = ["policy_text"]


def policy_text(evidence: Evidence, pins: Sequence[str]) -> str | None:
    """Return a line for each layer to keep in float32, or None where there is none."""
    if not pins:
        return None
    layers = {layer.id: layer for layer in evidence.layers}
    others = evidence.record.model.get("dtype_policy")
    rest = f"; the others keep {printable(others)}" if others else ""
    lines = [f'# Build {counted(len(pins), "layer")} with dtype="float32"{rest}.']
    for pin in pins:
        layer_type = printable(layers[pin].type) if pin in layers else "Layer"
        lines.append(f'{layer_type}(..., dtype="float32")  # {printable(pin)}')
    return "\n".join(lines)
