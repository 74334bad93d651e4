"""YAML files of 'name: value' lines: options, limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from precscope.errors import OptionsError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_mapping"]


def read_mapping(path: Path, what: str) -> dict[Any, Any]:
    """Return the mapping in the YAML file `path`, the file of `what` ("options"); an empty file holds none.

    Raises:
        OptionsError: The file cannot be read, is no YAML, or its top level is no mapping.
    """
    try:
        content = yaml.safe_load(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise OptionsError(f"The {what} file {str(path)!r} cannot be read: {error}. Give a YAML text file.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the last two: a date or nesting beyond Python's
        problem = " ".join(str(error).split())
        raise OptionsError(f"The {what} file {str(path)!r} is not valid YAML: {problem}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise OptionsError(f"The {what} file {str(path)!r} must hold 'name: value' lines; its top level is a {kind}.")
    return content
