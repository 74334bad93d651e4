"""Which layers must follow a layer into float32: those that would cast what they read back to float16."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precscope.advice.questions import outputs_of
from precscope.formats import FORMATS
from precscope.origin_records import is_code_id

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from precscope.advice.evidence import Evidence
    from precscope.advice.sources import Source
    from precscope.records import LayerRecord

__all__ = ["float16_readers", "outgrew_float16", "pinnable", "reach_through", "readers_of"]

_FLOAT16 = FORMATS["float16"]
#: Keras layers whose output is as large as the largest value that they are given.
_PASSING_ON = frozenset(
    (
        *("Add", "Subtract", "Concatenate", "Maximum", "Minimum", "Average"),
        *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "GaussianDropout", "AlphaDropout"),
        *("Identity", "Flatten", "Reshape", "Permute", "RepeatVector"),
        *("MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "GlobalMaxPooling1D", "GlobalMaxPooling2D"),
        *("ReLU", "LeakyReLU", "PReLU", "ELU", "UpSampling1D", "UpSampling2D", "UpSampling3D"),
        *("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D", "Cropping1D", "Cropping2D", "Cropping3D"),
    )
)
_SOFTMAX = ("Softmax", "Activation")


def float16_readers(evidence: Evidence, layer: str) -> tuple[str, ...]:
    """Return the layers that would cast the output of `layer` back to float16.

    Where a reader's own output is as large as its input (a sum, a Dropout), or nothing tells (it was not recorded), its
    readers count too. A reference step that saw a reader work on the float32 values knows better than its type.
    """
    graph, found = evidence.graph, dict[str, None]()
    pending = [layer]
    while pending:
        for name in graph.consumers(pending.pop()):
            record = graph.by_id[name]
            if name in found or record.compute_dtype != "float16" or not record.autocast:
                continue
            if evidence.measured.breaks(name, layer) is False:
                continue
            found[name] = None
            pending += [name] if record.unseen is not None or record.type in _PASSING_ON else []
    return tuple(name for name in graph.innermost(found) if name != layer)


def reach_through(evidence: Evidence, layer: str, goals: Collection[str]) -> tuple[str, ...] | None:
    """Return the float16 layers that lie between a layer and one of `goals` and only hand on what they are given.

    They would round what is exact before and after them. None where no such way leads to a goal.
    """
    graph = evidence.graph
    ways: list[tuple[str, ...]] = [()]
    heads = [layer]
    while heads:
        head, way = heads.pop(0), ways.pop(0)
        for name in graph.consumers(head):
            record = graph.by_id[name]
            if name in goals:
                return way
            hands_on = record.type in _PASSING_ON or record.unseen is not None
            if hands_on and record.compute_dtype == "float16" and name not in way:
                heads.append(name)
                ways.append((*way, name))
    return None


def pinnable(evidence: Evidence, names: Iterable[str]) -> tuple[str, ...]:
    """Return the layers to pin for `names`, among which may be code between layers, which has no policy of its own.

    Code inside a layer's call computes in what that layer's inner layers give it, so the layer is pinned with all that
    it holds; code of the model itself is reached by the layers before it and the one that reads it.
    """
    return tuple(dict.fromkeys(layer for name in names for layer in _layers_for(evidence, name)))


def _layers_for(evidence: Evidence, name: str) -> list[str]:
    graph = evidence.graph
    owner, _, last = name.rpartition("/")
    if not is_code_id(last):
        return [name]
    if owner:
        around = [owner, *graph.contents.get(owner, ())]
    else:
        around = [*(graph.producers(name) if name in graph.by_id else ()), *graph.consumers(name)]
    narrow = [other for other in around if graph.by_id[other].compute_dtype == "float16"]
    return [other for other in narrow if not is_code_id(other.rpartition("/")[2])]


def readers_of(evidence: Evidence, source: Source) -> tuple[str, ...]:
    """Return the layers that must follow a source of infinities into float32: none where its values stay moderate."""
    if not outgrew_float16(evidence, source):
        return ()
    return float16_readers(evidence, source.layer)


def outgrew_float16(evidence: Evidence, source: Source) -> bool:
    """Tell whether a source's true values lie beyond float16, so that its readers could not hold them either.

    Values that grow beyond the largest number have neighbours close below it. Where all that is finite is far smaller,
    the infinity came from a division by zero or the logarithm of one, whose float32 result is moderate; or it is the
    minus infinity of a mask, which the softmax that reads it would make again.
    """
    outputs = outputs_of(evidence, [source.layer])
    infinities = {
        sign: evidence.total(evidence.counts(f"{sign}_infinities"), outputs, source.samples)
        for sign in ("positive", "negative")
    }
    if not any(infinities.values()):
        return False
    if not infinities["positive"] and _read_by_softmax(evidence, source.layer):
        return True
    bits = _FLOAT16.headroom_bits(evidence.highest(outputs))
    return bits is None or bits < evidence.thresholds.singular_bits


def _read_by_softmax(evidence: Evidence, layer: str) -> bool:
    readers: list[LayerRecord] = [evidence.graph.by_id[name] for name in evidence.graph.consumers(layer)]
    return any(reader.type in _SOFTMAX for reader in readers)
