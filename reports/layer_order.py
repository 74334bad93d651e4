"""What the layers of a report can be sorted by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precscope.reports.text import compact, percent
from precscope.reports.time_view import milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from precscope.reports.layer_figures import LayerFigures

__all__ = ["ORDERS", "Order", "is_known", "sort_layers"]


@dataclass(frozen=True)
class Order:
    """One way to sort layers.

    Attributes:
        title: What the section is called, after "Layers, ".
        of: What is compared; None where a layer has no such number.
        most_first: Whether large values come first.
        missing: Why there may be a run in which no layer has such a number.
        column: Title of the column that shows it; empty where the report's table has one anyway.
        text: What that column says.
    """

    title: str
    of: Callable[[LayerFigures], float | str | None]
    most_first: bool = False
    missing: str = ""
    column: str = ""
    text: Callable[[LayerFigures], str] = lambda layer: ""


#: By the name that `--sort` takes. "harm" is the order of the findings, which needs more than a layer's figures.
ORDERS: dict[str, Order] = {
    "harm": Order("worst first", lambda layer: None),
    "order": Order("in forward order", lambda layer: layer.order),
    "name": Order("by name", lambda layer: layer.id),
    "type": Order("by type", lambda layer: layer.type),
    "headroom": Order("least headroom first", lambda layer: layer.headroom_bits, missing="no output has 16 bits"),
    "subnormal": Order(
        "largest subnormal share first", lambda layer: layer.subnormal_share, True, "no tensor has 16 bits"
    ),
    "flushed": Order(
        "largest flushed share first",
        lambda layer: layer.flushed_share,
        True,
        "no reference step was taken",
        column="flushed",
        text=lambda layer: percent(layer.flushed_share),
    ),
    "nonfinite": Order("most infinities and NaN first", lambda layer: layer.nonfinite, True),
    "time": Order(
        "slowest first",
        lambda layer: layer.time_ms,
        True,
        "no time by layer was measured",
        column="ms",
        text=lambda layer: milliseconds(layer.time_ms),
    ),
    "parameters": Order(
        "most parameters first",
        lambda layer: layer.parameters,
        True,
        column="param.",
        text=lambda layer: compact(layer.parameters),
    ),
}


def is_known(layers: Sequence[LayerFigures], order: Order) -> bool:
    """Return whether any layer has what `order` compares."""
    return any(order.of(layer) is not None for layer in layers)


def sort_layers(layers: Sequence[LayerFigures], order: Order) -> list[LayerFigures]:
    """Return `layers` in that order; equal ones as they were, those without such a number last."""
    known = [layer for layer in layers if order.of(layer) is not None]
    unknown = [layer for layer in layers if order.of(layer) is None]
    return sorted(known, key=order.of, reverse=order.most_first) + unknown  # type: ignore[arg-type]
