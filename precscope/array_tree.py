"""Nested structures of arrays in one .npz file: no pickle, every dtype kept, also those that NumPy does not know.

The file holds an entry "structure", JSON as uint8, and one entry an array. Each node of the structure is a JSON object
of one of these forms: {"dict": {key: node}}, {"tuple": [node]}, {"list": [node]}, {"value": a JSON scalar},
{"array": entry} or {"array": entry, "dtype": "bfloat16"}, the bits of which lie in the entry as uint16.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

__all__ = ["array_nodes", "decode_array_tree", "encode_array_tree"]

STRUCTURE = "structure"
_NUMPY_KINDS = "biufc"


def encode_array_tree(tree: Any) -> dict[str, NDArray[Any]]:
    """Return the entries of the .npz file that holds `tree`: dicts, lists, tuples, arrays, None, numbers and strings.

    Raises:
        TypeError: A part is of another kind; the message says where and what.
    """
    entries: dict[str, NDArray[Any]] = {}
    node = _encode(tree, "", entries)
    entries[STRUCTURE] = np.frombuffer(json.dumps(node).encode(), np.uint8)
    return entries


def _encode(value: Any, path: str, entries: dict[str, NDArray[Any]]) -> dict[str, Any]:
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"{path or 'the top'} has keys that are no strings: {list(value)[:5]}")
        return {"dict": {key: _encode(item, f"{path}/{key}", entries) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encode(item, f"{path}/{place}", entries) for place, item in enumerate(value)]}
    if isinstance(value, (np.ndarray, np.generic)):  # first: np.float64 is a float too
        return _encode_array(np.asarray(value), path, entries)
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"{path or 'the top'} is a {type(value).__name__}, no array")


def _encode_array(array: NDArray[Any], path: str, entries: dict[str, NDArray[Any]]) -> dict[str, Any]:
    name = f"{len(entries)}{path}"
    if array.dtype.kind in _NUMPY_KINDS and array.dtype.isbuiltin == 1:
        entries[name] = array
        return {"array": name}
    if array.dtype.name == "bfloat16":  # of the package ml_dtypes, which reading does not need
        entries[name] = array.view(np.uint16)
        return {"array": name, "dtype": "bfloat16"}
    raise TypeError(f"{path or 'the top'} is an array of dtype {array.dtype}, which cannot be kept")


def decode_array_tree(
    entries: Mapping[str, NDArray[Any]],
    leaf: Callable[[NDArray[Any], str], Any] | None = None,
    key: str | None = None,
) -> Any:
    """Return the structure that `encode_array_tree` made these entries of.

    Args:
        entries: What `numpy.load` gives.
        leaf: Makes a leaf of an array and the name of its dtype; by default the array alone. Arrays of bfloat16 come as
            float32, which holds their values exactly.
        key: Of a dict, only the value under this key; no other array is read.

    Raises:
        ValueError: The entries are no such structure.
    """
    make = leaf or (lambda array, dtype: array)
    try:
        node = array_nodes(entries)
        return _decode(node if key is None else node["dict"][key], entries, make)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"holds no structure of arrays ({type(error).__name__}: {error})") from error


def array_nodes(entries: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return the root node; entries of arrays are not read.

    Raises:
        KeyError: There is none.
        ValueError: It is not JSON.
    """
    node: dict[str, Any] = json.loads(entries[STRUCTURE].tobytes())
    return node


def _decode(node: dict[str, Any], entries: Mapping[str, NDArray[Any]], make: Callable[[NDArray[Any], str], Any]) -> Any:
    if "dict" in node:
        return {key: _decode(item, entries, make) for key, item in node["dict"].items()}
    if "list" in node:
        return [_decode(item, entries, make) for item in node["list"]]
    if "tuple" in node:
        return tuple(_decode(item, entries, make) for item in node["tuple"])
    if "value" in node:
        return node["value"]
    array = entries[node["array"]]
    dtype = node.get("dtype", array.dtype.name)
    if dtype == "bfloat16":
        array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return make(array, dtype)
