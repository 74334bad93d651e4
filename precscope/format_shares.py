"""What other formats would do to a run's tensors, layer by layer: predicted from exponent histograms."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from precscope.errors import PrecScopeError
from precscope.formats import FORMATS
from precscope.json_text import json_text
from precscope.scale_curve import GradientTotals, ScaleCurve, gradient_totals, scale_curve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.formats import FloatFormat
    from precscope.reader import Run
    from precscope.records import TensorRecord
    from precscope.what_if import Bracket

__all__ = [
    "NARROW_FORMATS",
    "FormatShares",
    "LayerShares",
    "ShareBracket",
    "WhatIfReport",
    "what_if_json",
    "what_if_report",
]

#: The formats that can be asked about.
NARROW_FORMATS: tuple[str, ...] = tuple(name for name, known in FORMATS.items() if known.bits < 32)

_KINDS: tuple[Literal["activation", "gradient"], ...] = ("activation", "gradient")


@dataclass(frozen=True)
class ShareBracket:
    """A share of a layer's non-zero values: at least `lower`, at most `upper`."""

    lower: float
    upper: float


@dataclass(frozen=True)
class FormatShares:
    """What one format would do to one layer's values.

    Attributes:
        format: Its name.
        flushed: Share that would become zero.
        subnormal: Share that would keep fewer digits.
        overflow: Share that would become infinite, or NaN in a format without infinities.
        headroom_bits: How often the largest value could double; None where there is none, negative where it overflows.
    """

    format: str
    flushed: ShareBracket
    subnormal: ShareBracket
    overflow: ShareBracket
    headroom_bits: float | None


@dataclass(frozen=True)
class LayerShares:
    """One layer's output, or the gradients that arrive there.

    Attributes:
        layer: Its id.
        kind: "activation" or "gradient".
        dtype: The dtype that was recorded.
        nonzero: Number of finite non-zero values that were looked at.
        formats: One entry a format.
    """

    layer: str
    kind: Literal["activation", "gradient"]
    dtype: str
    nonzero: int
    formats: tuple[FormatShares, ...]


@dataclass(frozen=True)
class WhatIfReport:
    """What other formats would do to a run.

    Attributes:
        run: Its name.
        policy: The dtype policy that it was recorded under; None where unknown.
        loss_scale: The loss scale that the gradients are predicted at; 1 is none.
        recorded_scale: The scale at the last sample; None without one.
        samples: Number of sampled steps that this rests on.
        layers: The harmed ones first: by the share that overflows, then by the share that is flushed.
        curve: The loss scale against what it costs in float16; None where no gradient was recorded.
        confidence: Always "predicted".
    """

    run: str
    policy: str | None
    loss_scale: float
    recorded_scale: float | None
    samples: int
    layers: tuple[LayerShares, ...]
    curve: ScaleCurve | None
    confidence: Literal["predicted"] = "predicted"


def what_if_report(run: Run, formats: Sequence[str] = NARROW_FORMATS, loss_scale: float | None = None) -> WhatIfReport:
    """Return what `formats` would do to the outputs and gradients of each layer.

    Args:
        run: A run that was read, of any policy.
        formats: Names of formats.
        loss_scale: The scale to predict the gradients at; by default that of the last sample, 1 without one.

    Raises:
        PrecScopeError: The run has no sampled step.
    """
    if not run.samples:
        raise PrecScopeError(
            f"The run in '{run.path}' has no sampled step, so there is nothing to predict from. Record more steps, or "
            "a sample each step with every=1."
        )
    recorded = run.samples[-1].loss_scale
    scale = loss_scale or recorded or 1.0
    known = [FORMATS[name] for name in formats]
    tensors: dict[tuple[str, Literal["activation", "gradient"], str], list[TensorRecord]] = defaultdict(list)
    for tensor in run.tensors:
        for kind in _KINDS:
            if tensor.kind == kind:
                tensors[tensor.layer, kind, tensor.dtype].append(tensor)
    layers = [
        _layer(layer, kind, dtype, gradient_totals(run, rows), known, scale)
        for (layer, kind, dtype), rows in tensors.items()
    ]
    return WhatIfReport(
        run=run.record.name,
        policy=run.record.model.get("dtype_policy"),
        loss_scale=scale,
        recorded_scale=recorded,
        samples=len(run.samples),
        layers=tuple(sorted((layer for layer in layers if layer.nonzero), key=_harm)),
        curve=scale_curve(run, also_float32=True),
    )


def what_if_json(report: WhatIfReport) -> str:
    """Return the report as JSON."""
    return json_text("precscope-what-if", 1, report)


def _harm(layer: LayerShares) -> tuple[float, float]:
    return (-max(f.overflow.lower for f in layer.formats), -max(f.flushed.lower for f in layer.formats))


def _layer(
    layer: str,
    kind: Literal["activation", "gradient"],
    dtype: str,
    totals: Sequence[GradientTotals],
    formats: Sequence[FloatFormat],
    scale: float,
) -> LayerShares:
    nonzero = sum(int(total.histograms.sum()) for total in totals)
    shares = tuple(_shares(totals, kind, known, scale, nonzero) for known in formats)
    return LayerShares(layer, kind, dtype, nonzero, shares)


def _shares(
    totals: Sequence[GradientTotals], kind: str, known: FloatFormat, scale: float, nonzero: int
) -> FormatShares:
    # A loss scale moves gradients alone: outputs stay where they are.
    scales = [scale if kind == "gradient" else total.scale for total in totals]
    answers = [total.what_if(known, wanted) for total, wanted in zip(totals, scales, strict=True)]
    largest = [
        float(np.nanmax(total.largest)) * wanted / total.scale
        for total, wanted in zip(totals, scales, strict=True)
        if np.isfinite(total.largest).any()
    ]
    return FormatShares(
        known.name,
        _bracket([answer.flushed for answer in answers], nonzero),
        _bracket([answer.subnormal for answer in answers], nonzero),
        _bracket([answer.overflow for answer in answers], nonzero),
        known.headroom_bits(max(largest)) if largest else None,
    )


def _bracket(counts: Sequence[Bracket], nonzero: int) -> ShareBracket:
    lower, upper = (sum(int(getattr(count, end).sum()) for count in counts) for end in ("lower", "upper"))
    return ShareBracket(lower / max(nonzero, 1), upper / max(nonzero, 1))
