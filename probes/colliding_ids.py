"""Ids that went through a float format too coarse for them before a table was looked up: neighbours become one row.

Keras casts the float inputs of a layer to the layer's dtype. Ids that reach a model as floats (`keras.Input` without
`dtype="int32"`) so pass through float16 on their way into a custom layer that embeds them, and no value looks wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from precscope.formats import FORMATS
from precscope.probes.forward_graph import input_specs, trace_forward
from precscope.probes.internals.layer_tree import walk_layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["CollidingIds", "ids_that_collide"]

_LOOKUPS = ("GatherV2", "GatherNd")
_MOST_OPS = 12  # between the cast and the lookup: negative ids are wrapped, others clipped


class CollidingIds:
    """Looks at the ops of a traced step, layer by layer."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    def look(self, layer_id: str, ops: Sequence[Any]) -> None:
        """Look at the ops that a layer's call made."""
        for op in ops:
            if op.type != "Cast":
                continue
            source, ids = op.inputs[0], op.outputs[0]
            if source.dtype.name not in FORMATS or not ids.dtype.is_integer:
                continue
            limit, rows = FORMATS[source.dtype.name].largest_exact_integer, _rows_looked_up(ids)
            if rows is not None and rows > limit + 1:
                self._found[layer_id] = (
                    f"{layer_id!r} looks up {rows:,} rows by ids that were {source.dtype.name} before, which tells "
                    f"whole numbers apart up to {limit:,} only: ids above collide. Hand ids over as integers "
                    '(keras.Input(..., dtype="int32")), which no policy casts, or give the layer that takes them '
                    "autocast=False."
                )

    def found(self) -> Iterator[str]:
        """Yield what was found, a sentence for each layer."""
        yield from self._found.values()


def ids_that_collide(model: Any) -> list[str]:
    """Return what is found in a forward pass, of which nothing is computed; nothing where the inputs are not known.

    For a training that failed before a step could be sampled: an id that is rounded up may lie outside of its table.
    """
    specs, layers, ids = input_specs(model, None), dict(walk_layers(model)), CollidingIds()
    if specs is None or all(layer.compute_dtype == "float32" for layer in layers.values()):
        return []
    for made in trace_forward(model, layers, specs).ops:
        ids.look(made.layer, [made.op])
    return list(ids.found())


def _rows_looked_up(ids: Any) -> int | None:
    """Return how many rows the table has that is looked up by these ids; None where none is, or its size is unknown."""
    pending, seen = [ids], 0
    while pending and seen < _MOST_OPS:
        for op in pending.pop(0).consumers():
            seen += 1
            if op.type in _LOOKUPS:
                table = op.inputs[0].shape
                return table[0] if table.rank else None
            pending += [tensor for tensor in op.outputs if tensor.dtype.is_integer]
    return None
