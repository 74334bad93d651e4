"""A user's model, from a function that several commands take as `MODULE:FUNCTION`."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from precscope.entry_point import load_entry_point
from precscope.error_text import where_it_failed
from precscope.errors import PrecScopeError

__all__ = ["build_model"]


def build_model(entry: str) -> tuple[Any, Any]:
    """Return the model that the user's function `entry` builds, and the dataset that it returns with it, or None.

    Raises:
        EntryPointError: There is no such function.
        PrecScopeError: It raised, or returned something else.
    """
    build = load_entry_point(entry)
    try:
        built = build()
    except (Exception, SystemExit) as error:  # a user's code
        raise PrecScopeError(f"{entry} raised {where_it_failed(error)}") from error
    model, dataset = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(model, keras.Model) or not isinstance(dataset, (tf.data.Dataset, type(None))):
        raise PrecScopeError(
            f"{entry} must return a compiled keras.Model, or that and a tf.data.Dataset; it returned "
            f"{type(built).__name__}."
        )
    return model, dataset
