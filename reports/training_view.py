"""Loss, loss scale and skipped steps over the run, as series that fit a line of characters."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from precscope.advice import Evidence

__all__ = ["Series", "TrainingView", "marks", "spark", "training_view"]

_BLOCKS = "▁▂▃▄▅▆"  # no higher, lest a line touch the one above


@dataclass(frozen=True)
class Series:
    """Values over steps, ascending; None where a value is unknown, NaN or infinite where the training gave that."""

    steps: tuple[int, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class TrainingView:
    """How the training went.

    Attributes:
        span: The first and the last step of all that follows.
        loss: The loss at the sampled steps.
        loss_scale: The loss scale at each look at the optimizer, or at the sampled steps where there was no look.
        skipped: Skipped steps since the session began, at each look.
        scaling: "dynamic", "static" or "none"; None where unknown.
        steps_seen: Steps between the first and the last look; sampled steps only, where there was no look.
        steps_skipped: How many of them were skipped; None where unknown.
        sampled_only: Whether only sampled steps could be judged.
    """

    span: tuple[int, int]
    loss: Series
    loss_scale: Series
    skipped: Series
    scaling: str | None
    steps_seen: int
    steps_skipped: int | None
    sampled_only: bool


def training_view(evidence: Evidence) -> TrainingView:
    """Return how the training went."""
    samples = evidence.samples
    looks = evidence.run.loss_scales
    steps = tuple(sample.step for sample in samples)
    scale = Series(steps, tuple(sample.loss_scale for sample in samples))
    if looks:
        scale = Series(tuple(look.step for look in looks), tuple(look.loss_scale for look in looks))
    every = [*steps, *(look.step for look in looks)]
    return TrainingView(
        span=(min(every, default=0), max(every, default=0)),
        loss=Series(steps, tuple(sample.loss for sample in samples)),
        loss_scale=scale,
        skipped=Series(tuple(look.step for look in looks), tuple(look.steps_skipped for look in looks)),
        scaling=evidence.loss_scaling,
        steps_seen=evidence.skips.seen,
        steps_skipped=evidence.skips.skipped,
        sampled_only=evidence.skips.sampled_only,
    )


def spark(series: Series, span: tuple[int, int], width: int, *, logarithmic: bool = False) -> str:
    """Return `series` over the steps of `span` in `width` characters.

    Blank before the first and after the last value, "×" where it is not finite.
    """
    levels = [_level(value, logarithmic) for value in series.values]
    finite = [level for level in levels if level is not None and math.isfinite(level)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return "".join(_glyph(_level(value, logarithmic), low, high) for value in _over_time(series, span, width))


def marks(series: Series, span: tuple[int, int], width: int) -> str:
    """Return "×" wherever a counter grew over the steps of `span`, in `width` characters."""
    counts = [value or 0.0 for value in _over_time(series, span, width)]
    return "".join("×" if later > earlier else " " for earlier, later in zip([0.0, *counts], counts, strict=False))


def _over_time(series: Series, span: tuple[int, int], width: int) -> list[float | None]:
    """Return the last known value at `width` evenly spaced steps, None outside the series."""
    known = [(step, value) for step, value in zip(series.steps, series.values, strict=True) if value is not None]
    steps = [step for step, _ in known]
    edges = [span[0] + (span[1] - span[0]) * column / width for column in range(width + 1)]
    places = [bisect_right(steps, end) - 1 for end in edges[1:]]
    return [
        known[place][1] if place >= 0 and start <= steps[-1] else None
        for start, place in zip(edges, places, strict=False)
    ]


def _level(value: float | None, logarithmic: bool) -> float | None:
    if value is None or not logarithmic or not math.isfinite(value):
        return value
    return math.log2(value) if value > 0 else -math.inf


def _glyph(value: float | None, low: float, high: float) -> str:
    if value is None:
        return " "
    if not math.isfinite(value):
        return "×"
    if high == low:
        return _BLOCKS[len(_BLOCKS) // 2]
    return _BLOCKS[round((value - low) / (high - low) * (len(_BLOCKS) - 1))]
