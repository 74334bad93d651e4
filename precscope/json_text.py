"""Results as JSON text for other programs: named, versioned, and readable by every parser."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["json_text"]


def json_text(format: str, version: int, result: DataclassInstance) -> str:
    """Return `result` as JSON, with the name and version of the format before its fields.

    JSON knows no NaN and no infinity: they become the strings "nan", "inf" and "-inf". Absence is null. Characters that
    could act on a terminal are escaped.
    """
    data = {"format": format, "version": version, **asdict(result)}
    text = json.dumps(_plain(data), indent=2, ensure_ascii=False, allow_nan=False)
    # Outside strings, which are the only place for them, all characters but line ends are printable.
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
