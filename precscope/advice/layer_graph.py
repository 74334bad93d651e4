"""Who feeds whom: the layers of a run as a graph, seen through containers and through layers without a recording."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precscope.records import LayerRecord

__all__ = ["LayerGraph"]


class LayerGraph:
    """Layers in forward order and the edges that `LayerRecord.inputs` tells.

    A *container* is a layer that holds others ("encoder" holds "encoder/dense"): its output is the output of one of
    them, so where both are suspects the one inside is meant.
    """

    def __init__(self, layers: Iterable[LayerRecord]):
        self.layers = tuple(sorted(layers, key=lambda layer: layer.order))
        self.by_id = {layer.id: layer for layer in self.layers}

    @cached_property
    def containers(self) -> dict[str, tuple[str, ...]]:
        """Of each layer, the ids of the layers that hold it, innermost first."""
        return {layer.id: tuple(self._holders(layer.id)) for layer in self.layers}

    @cached_property
    def contents(self) -> dict[str, tuple[str, ...]]:
        """Of each container, the ids of all layers inside it, in forward order."""
        inside = defaultdict(list)
        for layer in self.layers:
            for holder in self.containers[layer.id]:
                inside[holder].append(layer.id)
        return {holder: tuple(ids) for holder, ids in inside.items()}

    @cached_property
    def knows_edges(self) -> bool:
        """Whether any layer tells what it consumes."""
        return any(layer.inputs for layer in self.layers)

    def producers(self, layer_id: str) -> tuple[str, ...]:
        """Return the recorded layers whose outputs `layer_id` consumes, looking through unrecorded ones."""
        found: dict[str, None] = {}
        seen = {layer_id}
        pending = list(self.by_id[layer_id].inputs)
        while pending:
            name = pending.pop(0)
            if name in seen or name not in self.by_id:
                continue
            seen.add(name)
            if self.by_id[name].unseen is None:
                found[name] = None
            else:
                pending.extend(self.by_id[name].inputs)
        return tuple(found)

    def consumers(self, layer_id: str) -> tuple[str, ...]:
        """Return the layers that consume the output of `layer_id`, also as the output of the containers it closes."""
        names = [layer_id]
        for holder in self.containers[layer_id]:
            leaves = [name for name in self.contents[holder] if name not in self.contents]
            if not leaves or leaves[-1] != names[0]:
                break
            names.append(holder)
        found = dict.fromkeys(consumer for name in names for consumer in self._readers[name])
        return tuple(name for name in found if name not in names)

    def outputs(self) -> tuple[str, ...]:
        """Return the layers whose output nobody consumes; only the last layer where no edges are known."""
        ran = [layer.id for layer in self.layers if layer.unseen is None and layer.id not in self.contents]
        if not self.knows_edges:
            return tuple(ran[-1:])
        return tuple(name for name in ran if not self.consumers(name) and not self._is_inside(name))

    def _is_inside(self, layer_id: str) -> bool:
        """Tell whether the layer hands its output to the code of a layer that holds it."""
        return any(
            self._readers[holder]
            or [name for name in self.contents[holder] if name not in self.contents][-1:] != [layer_id]
            for holder in self.containers[layer_id]
        )

    def innermost(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return `names` without the containers of others among them, in forward order."""
        chosen = set(names)
        holders = {holder for name in chosen for holder in self.containers[name]}
        return tuple(layer.id for layer in self.layers if layer.id in chosen - holders)

    @cached_property
    def _readers(self) -> dict[str, tuple[str, ...]]:
        readers: dict[str, list[str]] = defaultdict(list)
        for layer in self.layers:
            for name in layer.inputs:
                readers[name].append(layer.id)
        return defaultdict(tuple, {name: tuple(ids) for name, ids in readers.items()})

    def _holders(self, layer_id: str) -> Iterable[str]:
        path = layer_id
        while "/" in path:
            path = path.rpartition("/")[0]
            if path in self.by_id:
                yield path
