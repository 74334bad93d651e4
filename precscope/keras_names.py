"""The names that Keras gives to layers that nobody named."""

from __future__ import annotations

import re

__all__ = ["snake_case"]


def snake_case(class_name: str) -> str:
    """Return the name that Keras gives to a layer of this class (keras.src.utils.naming.to_snake_case)."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", class_name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
