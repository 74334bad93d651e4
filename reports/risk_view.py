"""Time by layer beside precision risk: where 16 bits pay, and what it costs to give them up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from precscope.formats import FORMATS
from precscope.reports.layer_rows import layer_severities
from precscope.reports.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.advice import Evidence, Finding
    from precscope.advice.finding import Severity
    from precscope.layer_time import LayerTime

__all__ = ["QUADRANTS", "LayerRisk", "Quadrant", "risk_view"]

Quadrant = Literal["safe and fast", "safe, but not worth it", "risky and cheap to fix", "risky and costly"]
#: What each quadrant says.
QUADRANTS: dict[Quadrant, str] = {
    "risky and cheap to fix": "A warning or an error, and little time: float32 costs next to nothing here.",
    "risky and costly": "A warning or an error in a layer that takes much of the step: weigh bfloat16 or another cure.",
    "safe and fast": "No warning, and much of the step's time: this is where 16 bits pay.",
    "safe, but not worth it": "No warning, and little time: 16 bits gain next to nothing here.",
}
#: The fewest layers that together take this share of all layers' time are where time is spent.
_MUCH = 0.8


@dataclass(frozen=True)
class LayerRisk:
    """A layer that computes in 16 bits, its time in a step and what was found about it.

    Attributes:
        layer: The layer's id.
        name: The same, printable.
        total_ms: Device time in a step.
        share: Of all device time in the window.
        severity: The worst warning or error that names it; None without.
        quadrant: Where it stands.
    """

    layer: str
    name: str
    total_ms: float
    share: float
    severity: Severity | None
    quadrant: Quadrant


def risk_view(evidence: Evidence, findings: Sequence[Finding]) -> tuple[LayerRisk, ...]:
    """Return the layers that compute in 16 bits and whose time was measured, the costliest first."""
    narrow = {
        layer.id
        for layer in evidence.layers
        if layer.compute_dtype in FORMATS and FORMATS[layer.compute_dtype].bits <= 16
    }
    times = [time for time in evidence.run.layer_times() if time.layer in narrow]
    severities, costly = layer_severities(findings), _costly(times)
    return tuple(
        LayerRisk(
            layer=str(time.layer),
            name=printable(str(time.layer)),
            total_ms=time.total_ms,
            share=time.share,
            severity=severities.get(str(time.layer)),
            quadrant=_quadrant(is_risky=time.layer in severities, is_costly=time.layer in costly),
        )
        for time in times
    )


def _costly(times: Sequence[LayerTime]) -> set[str | None]:
    """Return the fewest layers that together take most of the time; `times` are sorted, the costliest first."""
    room, costly = _MUCH * sum(time.total_ms for time in times), set()
    for time in times:
        if room <= 0:
            break
        costly.add(time.layer)
        room -= time.total_ms
    return costly


def _quadrant(*, is_risky: bool, is_costly: bool) -> Quadrant:
    if is_risky:
        return "risky and costly" if is_costly else "risky and cheap to fix"
    return "safe and fast" if is_costly else "safe, but not worth it"
