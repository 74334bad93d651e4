"""Questions about a layer that several rules ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precscope.advice.finding import Number
from precscope.formats import FORMATS
from precscope.origin_records import DATA_ID

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precscope.advice.evidence import Evidence
    from precscope.advice.sources import Source
    from precscope.records import LayerRecord, TensorRecord

__all__ = ["given_to", "is_input", "nonfinite_numbers", "outputs_of", "overflowing_inputs"]

_FLOAT16 = FORMATS["float16"]


def is_input(layer: LayerRecord) -> bool:
    """Return whether the layer only hands the data over."""
    return layer.type == "InputLayer"


def outputs_of(evidence: Evidence, layers: Iterable[str], dtype: str | None = None) -> list[TensorRecord]:
    """Return the recorded outputs of `layers`."""
    return [tensor for name in layers for tensor in evidence.tensors("activation", layer=name, dtype=dtype)]


def given_to(evidence: Evidence, layer: LayerRecord) -> list[TensorRecord]:
    """Return the recorded tensors that a layer reads; of the data all features, for which of them is not known.

    Labels and sample weights, which are data too, go to the loss.
    """
    tensors = outputs_of(evidence, evidence.graph.producers(layer.id))
    return [t for t in tensors if t.layer != DATA_ID or t.name.partition("/")[0] == "x"]


def overflowing_inputs(evidence: Evidence, layer: LayerRecord) -> list[TensorRecord]:
    """Return the tensors of a wider range that a float16 layer reads and float16 cannot hold.

    Where the data have several features, the layer may read another one: then only if its output was seen to break.
    """
    casts = layer.compute_dtype == "float16" and layer.autocast
    if not casts or layer.id in evidence.graph.contents or is_input(layer):
        return []
    given = given_to(evidence, layer)
    wider = [tensor for tensor in given if FORMATS[tensor.dtype].max > _FLOAT16.max]
    beyond = [tensor for tensor in wider if (evidence.highest([tensor]) or 0.0) >= _FLOAT16.overflow_limit]
    features = [tensor for tensor in given if tensor.layer == DATA_ID]
    if len(features) > 1 and not evidence.bad("activation", layer.id).any():
        return [tensor for tensor in beyond if tensor not in features]
    return beyond


def nonfinite_numbers(evidence: Evidence, source: Source) -> dict[str, Number]:
    """Return what the source put out in its samples, and the largest magnitude that it was given."""
    put_out = outputs_of(evidence, [source.layer])
    nans = evidence.total(evidence.counts("nans"), put_out, source.samples)
    infinities = evidence.total(evidence.nonfinite, put_out, source.samples) - nans
    numbers = {"infinities": Number(infinities, 0), "NaN": Number(nans, 0)}
    given = outputs_of(evidence, evidence.graph.producers(source.layer))
    largest = evidence.highest(given, source.samples)
    return numbers if largest is None else numbers | {"largest input": Number(largest)}
