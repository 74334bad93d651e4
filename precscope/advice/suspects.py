"""In which order layers are tried in float32: the findings' own, then what they hint at, then the rest."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from precscope.advice import keep_float32
from precscope.formats import FORMATS
from precscope.origin_records import is_code_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from precscope.advice.evidence import Evidence
    from precscope.advice.finding import Finding

__all__ = ["further_layers", "layers_beyond", "suspected_layers"]


def suspected_layers(findings: Sequence[Finding]) -> tuple[str, ...]:
    """Return the layers that warnings and errors say to keep in float32, with those that read them, worst first."""
    return keep_float32(findings)


def layers_beyond(evidence: Evidence, format_name: str) -> tuple[str, ...]:
    """Return the layers whose output left the range of a format that they do not compute in, with those that read it.

    What a run in float32 shows before anyone trains it in 16 bits: they would overflow there.

    Args:
        evidence: The run.
        format_name: The format's name, such as "float16".
    """
    largest = FORMATS[format_name].max
    beyond = [
        layer.id
        for layer in evidence.layers
        if not is_code_id(layer.id)
        for tensor in evidence.tensors("activation", layer=layer.id)
        if (evidence.absmax[:, tensor.index] > largest).any()
    ]
    named = [name for layer in beyond for name in (layer, *evidence.graph.consumers(layer))]
    return tuple(name for name in dict.fromkeys(named) if _bits(evidence, name) is not None)


def further_layers(evidence: Evidence, findings: Sequence[Finding]) -> tuple[str, ...]:
    """Return the other 16-bit layers in the order in which a set that does not suffice grows.

    Of a run without any, such as one in float32, all that compute in floating point.

    First the layers that any finding names, whatever it advises and however mild; then the neighbours of all these, for
    what leaves the range of a layer hurts those that read it; then by each layer's own error, where a reference step
    measured it; then the model's outputs, and the rest from the loss backwards, where gradients overflow first. Layers
    that own others come last: a pin on them covers all these.
    """
    suspects = suspected_layers(findings)
    named = [name for finding in findings for name in (finding.layer, *finding.consumers) if name is not None]
    graph = evidence.graph
    near = [
        neighbour
        for name in dict.fromkeys((*suspects, *named))
        if name in graph.by_id
        for neighbour in (*graph.consumers(name), *graph.producers(name))
    ]
    rest = [layer.id for layer in reversed(evidence.layers)]
    ordered = dict.fromkeys((*named, *near, *_by_own_error(evidence), *graph.outputs(), *rest))
    floating = [name for name in ordered if name in graph.by_id and _bits(evidence, name) is not None]
    narrow = [name for name in floating if _bits(evidence, name) == 16] or floating
    return tuple(name for name in _owners_last(narrow, graph.contents) if name not in suspects)


def _by_own_error(evidence: Evidence) -> list[str]:
    """Return the layers that reference steps measured, the one that adds most error by itself first."""
    worst: dict[str, float] = {}
    for record in evidence.run.reference:
        broken = (record.own_overflowed or 0) + (record.own_nans or 0)
        error = math.inf if broken else record.own_relative_error or 0.0
        worst[record.layer] = max(error, worst.get(record.layer, 0.0))
    return sorted(worst, key=lambda layer: -worst[layer])


def _bits(evidence: Evidence, name: str) -> int | None:
    """Return in how many bits a layer computes; None of one that does not compute in floating point, or is none."""
    layer = evidence.graph.by_id[name]
    if is_code_id(name) or layer.type in ("InputLayer", "batch") or layer.compute_dtype not in FORMATS:
        return None
    return FORMATS[layer.compute_dtype].bits


def _owners_last(names: Iterable[str], owners: Iterable[str]) -> Iterator[str]:
    """Yield what owns no other layer first: a pin on an owner covers all that it owns."""
    known = set(owners)
    later = []
    for name in names:
        if name in known:
            later.append(name)
        else:
            yield name
    yield from later
