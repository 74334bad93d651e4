"""The loss scale in lines of text: what a report and `precscope whatif` say about its curve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precscope.advice.loss_scale_account import CAUSES
from precscope.advice.wording import counted, plain, quoted, share
from precscope.scale_curve import SCALES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.advice.loss_scale_verdict import SkippedStretch
    from precscope.scale_curve import ScaleCurve

__all__ = ["best_scale", "curve_line", "curve_span", "headroom", "skip_lines", "worst_shares"]

_BLOCKS = "▁▂▃▄▅▆"


def best_scale(curve: ScaleCurve) -> str:
    """Return the best fixed scale, what it flushes, and who limits it."""
    if curve.best_scale is None:
        return (
            f"no scale of 1 or more fits: the largest gradient, at {quoted(curve.limiting_layer)}, is "
            f"{plain(curve.largest_gradient)} without any (predicted)"
        )
    flushed = f" and flushes {share(curve.flushed_at_best)} or more" if curve.flushed_at_best else ""
    return (
        f"{curve.best_scale:,.0f} leaves 2 bits to the largest gradient{flushed} (predicted); "
        f"{quoted(curve.limiting_layer)} limits it"
    )


def headroom(curve: ScaleCurve) -> str | None:
    """Return how far the scale at the last sample is from the largest gradient that was seen."""
    if curve.headroom_bits is None or curve.scale is None:
        return None
    side = "below" if curve.headroom_bits >= 0 else "above"
    return f"{abs(curve.headroom_bits):.1f} bits {side} the limit at {plain(curve.scale)}"


def skip_lines(stretches: Sequence[SkippedStretch], most: int) -> list[str]:
    """Return why steps were skipped, a line a stretch: faults first, then the first ones; `most` of them."""
    ranked = sorted(stretches, key=lambda stretch: not stretch.is_fault)
    lines = [_skip_line(stretch) for stretch in ranked[:most]]
    return lines if len(stretches) <= most else [*lines, f"{len(stretches) - most} more: --all"]


def _skip_line(stretch: SkippedStretch) -> str:
    one = stretch.earliest == stretch.latest
    where = f"step {stretch.earliest:,}" if one else f"step {stretch.earliest:,} to {stretch.latest:,}"
    amount = "" if one or stretch.is_exact else f", {stretch.skipped:,} among them"
    scale = "" if stretch.before is None else f", from {plain(stretch.before)} on"
    bits = "" if stretch.bits_too_many is None else f"; {counted(stretch.bits_too_many, 'bit')} too high at most"
    why = CAUSES[stretch.cause]
    if stretch.cause == "search" and stretch.after is not None and stretch.after <= 1:
        why = f"the first search for its level, down to {plain(stretch.after)}, which scales nothing"
    return f"{where}{amount}{scale}: {why}{bits}"


def worst_shares(curve: ScaleCurve) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return, for each scale, the worst layer's flushed and overflowing share."""
    flushed = tuple(max(values) for values in zip(*(layer.flushed for layer in curve.layers), strict=True))
    overflowed = tuple(max(values) for values in zip(*(layer.overflowed for layer in curve.layers), strict=True))
    return flushed, overflowed


def curve_line(shares: tuple[float, ...]) -> str:
    """Return shares from one scale to the next as a line of blocks, two characters a scale; blank for none at all."""
    return "".join(2 * (_block(part)) for part in shares)


def curve_span() -> str:
    """Return the axis below `curve_line`."""
    marks = {0: "1", 5: "2^5", 10: "2^10", 15: "2^15", 20: "2^20"}
    line = [" "] * (2 * len(SCALES))
    for place, text in marks.items():
        line[2 * place : 2 * place + len(text)] = text
    return "".join(line).rstrip()


def _block(part: float) -> str:
    return " " if part == 0 else _BLOCKS[min(int(part * len(_BLOCKS)), len(_BLOCKS) - 1)]
