"""The layers of a run as rows for a table, worst first."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from precscope.advice.wording import counted, listed
from precscope.errors import PrecScopeError
from precscope.formats import FORMATS
from precscope.reports.text import printable
from precscope.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from precscope.advice import Evidence, Finding, Thresholds
    from precscope.advice.finding import Severity
    from precscope.records import LayerRecord, TensorKind, TensorRecord

__all__ = ["LayerRow", "TensorRow", "layer_rows", "layer_severities", "matching"]

_LABELS: dict[TensorKind, str] = {
    "activation": "output",
    "gradient": "gradient",
    "weight": "weight",
    "weight_gradient": "w. grad.",
}


@dataclass(frozen=True)
class TensorRow:
    """What was seen of a layer's tensors of one kind and format.

    Attributes:
        label: "output", "gradient", "weight" or "w. grad.".
        dtype: Name of the format.
        histogram: Values by exponent, of up to 32 samples; of gradients, of those at the run's last loss scale.
        values: Elements seen in all samples; 0 where the tensor was in none.
        has_finite: Whether any of them, in the samples that the histogram shows, was finite.
        infinities: Infinities in all samples.
        nans: NaN in all samples.
        headroom_bits: Least headroom in the samples; None without finite non-zero values.
        subnormal_share: Share of the non-zero values in the samples; None without any.
        is_sampled: Whether the histogram looked at some of the elements only.
        alarm: The severity of its headroom; None where that is enough.
    """

    label: str
    dtype: str
    histogram: tuple[int, ...]
    values: int
    has_finite: bool
    infinities: int
    nans: int
    headroom_bits: float | None
    subnormal_share: float | None
    is_sampled: bool
    alarm: Severity | None


@dataclass(frozen=True)
class LayerRow:
    """One layer: its name, made printable, and what was recorded of it.

    `measure` is what the layers were sorted by, where no other column shows it.
    """

    name: str
    type: str
    compute_dtype: str
    severity: Severity | None
    tensors: tuple[TensorRow, ...]
    measure: str | None = None


def layer_rows(
    evidence: Evidence,
    findings: Sequence[Finding],
    layers: Sequence[LayerRecord],
    kinds: Sequence[TensorKind],
    *,
    worst_first: bool = True,
    measures: Mapping[str, str] | None = None,
) -> list[LayerRow]:
    """Return a row for each of `layers` that was recorded.

    Those with findings come first, then by least headroom; or all in the order of `layers`. `measures` holds, by the
    layer's id, what they were sorted by.
    """
    severities = layer_severities(findings)
    rows = [(layer.id, _row(evidence, layer, kinds, severities.get(layer.id))) for layer in layers]
    if measures is not None:
        rows = [(name, replace(row, measure=measures.get(name))) for name, row in rows]
    if worst_first:
        rank = {name: place for place, name in enumerate(severities)}
        rows.sort(key=lambda item: (rank.get(item[0], len(rank)), _least_headroom(item[1])))
    return [row for _, row in rows if row.tensors]


def matching(layers: Sequence[LayerRecord], pattern: str | None) -> list[LayerRecord]:
    """Return the layers whose id matches the regular expression anywhere; all of them without a pattern.

    Raises:
        PrecScopeError: The pattern is no regular expression, or no layer matches.
    """
    if pattern is None:
        return list(layers)
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise PrecScopeError(f"--layer {pattern!r} is not a regular expression: {error}.") from None
    found = [layer for layer in layers if expression.search(layer.id)]
    if not found:
        names = [layer.id for layer in layers]
        hint = did_you_mean(pattern, names) or f" The first are: {listed(names, most=5)}." if names else ""
        raise PrecScopeError(f"None of the run's {counted(len(names), 'layer')} matches --layer {pattern!r}.{hint}")
    return found


def layer_severities(findings: Sequence[Finding]) -> dict[str, Severity]:
    """Return the worst severity of each layer that a warning or an error names, worst first, consumers last."""
    serious = [finding for finding in findings if finding.severity != "info"]
    named = [(finding.layer, finding.severity) for finding in serious if finding.layer is not None]
    named += [(name, finding.severity) for finding in serious for name in finding.consumers]
    severities: dict[str, Severity] = {}
    for name, severity in named:
        severities.setdefault(name, severity)
    return severities


def _least_headroom(row: LayerRow) -> float:
    # A loss scale takes gradients to the limit on purpose, so they say nothing here.
    outputs = [t for t in row.tensors if t.label == _LABELS["activation"] and FORMATS[t.dtype].bits <= 16]
    return min((t.headroom_bits for t in outputs if t.headroom_bits is not None), default=float("inf"))


def _row(evidence: Evidence, layer: LayerRecord, kinds: Sequence[TensorKind], severity: Severity | None) -> LayerRow:
    rows = []
    for kind in kinds:
        tensors = evidence.tensors(kind, layer=layer.id)
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            rows.append(_tensor_row(evidence, kind, [tensor for tensor in tensors if tensor.dtype == dtype]))
    return LayerRow(printable(layer.id), printable(layer.type), layer.compute_dtype, severity, tuple(rows))


def _tensor_row(evidence: Evidence, kind: TensorKind, tensors: Sequence[TensorRecord]) -> TensorRow:
    columns = [tensor.index for tensor in tensors]
    # The loss scale moves gradients along the axis: those of another scale would blur the picture.
    is_gradient = kind in ("gradient", "weight_gradient")
    samples = evidence.at_current_scale if is_gradient else evidence.all_samples
    nonzero = evidence.total(evidence.nonzero, tensors, samples)
    nans = evidence.total(evidence.counts("nans"), tensors)
    values = evidence.total(evidence.counts("count"), tensors)
    headroom_bits = FORMATS[tensors[0].dtype].headroom_bits(evidence.highest(tensors, samples))
    return TensorRow(
        label=_LABELS[kind],
        dtype=tensors[0].dtype,
        histogram=tuple(evidence.histograms(samples)[columns].sum(axis=0).tolist()),
        values=values,
        has_finite=evidence.total(evidence.finite, tensors, samples) > 0,
        infinities=evidence.total(evidence.nonfinite, tensors) - nans,
        nans=nans,
        headroom_bits=headroom_bits,
        subnormal_share=evidence.total(evidence.counts("subnormals"), tensors, samples) / nonzero if nonzero else None,
        is_sampled=evidence.total(evidence.counts("histogram_count"), tensors) < values,
        alarm=_alarm(headroom_bits, evidence.thresholds) if kind == "activation" else None,
    )


def _alarm(headroom_bits: float | None, thresholds: Thresholds) -> Severity | None:
    if headroom_bits is None or headroom_bits >= thresholds.headroom_warning_bits:
        return None
    return "error" if headroom_bits < thresholds.headroom_error_bits else "warning"
