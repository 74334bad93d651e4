"""Each layer in figures: what the report's data hold and what its table can be sorted by."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from precscope.formats import FORMATS
from precscope.measured_flush import measured_flushed_shares
from precscope.reports.layer_rows import layer_severities
from precscope.reports.tensor_groups import KINDS, tensor_groups

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from precscope.advice import Evidence, Finding
    from precscope.advice.finding import Severity
    from precscope.records import LayerRecord, TensorKind
    from precscope.reports.tensor_groups import TensorGroups

__all__ = ["LayerFigures", "TensorFigures", "layer_figures"]


@dataclass(frozen=True)
class TensorFigures:
    """A layer's tensors of one kind in one format, over all samples.

    Shares, extremes and headroom of gradients are those at the run's last loss scale, which is in them.

    Attributes:
        kind: "activation" (the output), "gradient" (that arrives there), "weight" or "weight_gradient".
        dtype: Name of the format.
        values: Elements seen.
        zeros: Exact zeros.
        infinities: Of both signs.
        nans: Not a number.
        subnormal_share: Share of the finite non-zero values below the format's smallest normal; None without any.
        absmax: Largest finite magnitude; None without finite values.
        smallest_nonzero: Smallest finite magnitude that is not zero; None without one.
        headroom_bits: log2(format's largest / absmax); None without finite non-zero values.
        lost_update_share: Share of the updates that left their weight as it was; None where no update was seen.
        histogram_sampled: Whether the exponent histogram looked at some of the elements only.
    """

    kind: TensorKind
    dtype: str
    values: int
    zeros: int
    infinities: int
    nans: int
    subnormal_share: float | None
    absmax: float | None
    smallest_nonzero: float | None
    headroom_bits: float | None
    lost_update_share: float | None
    histogram_sampled: bool


@dataclass(frozen=True)
class LayerFigures:
    """One layer; None is what was not measured.

    Attributes:
        id: Its id.
        order: Its place in the forward pass, from 0.
        type: Class name.
        keras_path: Its path in Keras, or None.
        policy: Name of its dtype policy.
        compute_dtype: What it computes in.
        variable_dtype: What its variables are kept in.
        parameters: Elements of its own weights.
        inputs: Ids of the layers that it reads.
        severity: The worst of the warnings and errors that name it; None without.
        headroom_bits: The least headroom of its outputs in 16 bits.
        subnormal_share: The largest subnormal share of its outputs and gradients in 16 bits.
        flushed_share: The largest share of values that a reference step found flushed.
        nonfinite: Infinities and NaN in all its tensors.
        time_ms: Device time in a step.
        time_share: Of all device time in the profiled window.
        unseen: Why its output was not recorded; None where it was.
        gradient_unseen: Why the gradient at its output was not recorded; None where it was.
        tensors: What was recorded of it.
    """

    id: str
    order: int
    type: str
    keras_path: str | None
    policy: str
    compute_dtype: str
    variable_dtype: str
    parameters: int
    inputs: tuple[str, ...]
    severity: Severity | None
    headroom_bits: float | None
    subnormal_share: float | None
    flushed_share: float | None
    nonfinite: int
    time_ms: float | None
    time_share: float | None
    unseen: str | None
    gradient_unseen: str | None
    tensors: tuple[TensorFigures, ...]


def layer_figures(
    evidence: Evidence, findings: Sequence[Finding], layers: Sequence[LayerRecord]
) -> tuple[LayerFigures, ...]:
    """Return the figures of `layers`, in their order."""
    groups = tensor_groups(evidence)
    tensors: dict[int, list[TensorFigures]] = defaultdict(list)
    for group, place in enumerate(groups.layer.tolist()):
        tensors[place].append(_tensor(groups, group))
    places = {layer.id: place for place, layer in enumerate(evidence.layers)}
    severities, flushed = layer_severities(findings), measured_flushed_shares(evidence.run)
    times = {time.layer: time for time in evidence.run.layer_times() if time.layer is not None}
    return tuple(
        _layer(
            layer,
            place=places[layer.id],
            tensors=tuple(tensors[places[layer.id]]),
            severity=severities.get(layer.id),
            flushed_share=flushed.get(layer.id),
            time=(times[layer.id].total_ms, times[layer.id].share) if layer.id in times else (None, None),
        )
        for layer in layers
    )


def _layer(
    layer: LayerRecord,
    *,
    place: int,
    tensors: tuple[TensorFigures, ...],
    severity: Severity | None,
    flushed_share: float | None,
    time: tuple[float | None, float | None],
) -> LayerFigures:
    narrow = [tensor for tensor in tensors if FORMATS[tensor.dtype].bits <= 16]
    return LayerFigures(
        id=layer.id,
        order=place,
        type=layer.type,
        keras_path=layer.keras_path,
        policy=layer.policy,
        compute_dtype=layer.compute_dtype,
        variable_dtype=layer.variable_dtype,
        parameters=layer.parameters,
        inputs=layer.inputs,
        severity=severity,
        headroom_bits=min(_known(t.headroom_bits for t in narrow if t.kind == "activation"), default=None),
        subnormal_share=max(
            _known(t.subnormal_share for t in narrow if t.kind in ("activation", "gradient")), default=None
        ),
        flushed_share=flushed_share,
        nonfinite=sum(tensor.infinities + tensor.nans for tensor in tensors),
        time_ms=time[0],
        time_share=time[1],
        unseen=layer.unseen,
        gradient_unseen=layer.gradient_unseen,
        tensors=tensors,
    )


def _tensor(groups: TensorGroups, group: int) -> TensorFigures:
    nonzero, absmax = int(groups.nonzero[group]), _number(groups.absmax[group])
    updates = int(groups.totals["updates"][group])
    return TensorFigures(
        kind=KINDS[groups.kind[group]],
        dtype=groups.dtype[group],
        values=int(groups.totals["count"][group]),
        zeros=int(groups.totals["zeros"][group]),
        infinities=int(groups.infinities[group]),
        nans=int(groups.totals["nans"][group]),
        subnormal_share=int(groups.subnormals[group]) / nonzero if nonzero else None,
        absmax=absmax,
        smallest_nonzero=_number(groups.smallest[group]),
        headroom_bits=FORMATS[groups.dtype[group]].headroom_bits(absmax),
        lost_update_share=int(groups.totals["lost_updates"][group]) / updates if updates else None,
        histogram_sampled=bool(groups.is_sampled[group]),
    )


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
