"""Under which paths of names the scope of each layer may be found: the input of `precscope.probes.op_scopes`."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from precscope.keras_names import snake_case

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from precscope.records import LayerRecord

__all__ = ["paths_of_layers", "paths_of_records"]


def paths_of_layers(layers: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """Return layer ids by path of names, from (id, Keras layer) pairs, owners before what they own.

    This is the exact way. Ids go by attributes ("encoder/blocks/0/attention"), scopes go by names
    ("encoder/block/attention"); of a layer at hand both are known. Paths that mean two layers are left out.
    """
    paths: dict[str, str] = {}
    for layer_id, layer in layers:
        paths[layer_id] = f"{paths.get(_owner(layer_id, paths), '')}/{layer.name}".lstrip("/")
    return _unambiguous((path, layer_id) for layer_id, path in paths.items())


def paths_of_records(layers: Sequence[LayerRecord]) -> dict[str, str]:
    """Return layer ids by path of names, as far as the records of a run tell.

    A layer without weights has no Keras path, and its id may end in an attribute ("attention/_softmax") where the scope
    has the layer's own name, which by default is its class in snake case ("softmax").
    """
    paths = {layer.id: {layer.id, layer.keras_path or layer.id} for layer in layers}

    def candidates() -> Iterator[tuple[str, str]]:
        for layer in layers:
            yield from ((path, layer.id) for path in paths[layer.id])
            if layer.keras_path is None:
                attribute = layer.id.rpartition("/")[2].lstrip("_")
                for path in paths.get(_owner(layer.id, paths), {""}):
                    for name in (attribute, snake_case(layer.type)):
                        yield f"{path}/{name}".lstrip("/"), layer.id

    return _unambiguous(candidates())


def _owner(layer_id: str, known: Mapping[str, Any]) -> str:
    """Return the id of the layer that owns this one, or "" where the model does."""
    owner = layer_id.rpartition("/")[0]
    while owner and owner not in known:
        owner = owner.rpartition("/")[0]
    return owner


def _unambiguous(paths: Iterable[tuple[str, str]]) -> dict[str, str]:
    ids: dict[str, set[str]] = defaultdict(set)
    for path, layer_id in paths:
        ids[path].add(layer_id)
    return {path: min(found) for path, found in ids.items() if len(found) == 1}
