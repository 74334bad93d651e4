"""A user's model, from a function that several commands take as `MODULE:FUNCTION`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from precscope.entry_point import load_entry_point
from precscope.error_text import where_it_failed
from precscope.errors import PrecScopeError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BUILT_FOR_REPLAY", "BuiltTraining", "build_model", "build_training"]

#: What a function for `build_training` returns, in words.
BUILT_FOR_REPLAY = (
    "a compiled keras.Model (alone, or with a tf.data.Dataset), or of a custom loop the model, its optimizer and the "
    "step function"
)


@dataclass(frozen=True)
class BuiltTraining:
    """What a user's function built.

    Attributes:
        model: The model.
        optimizer: Its optimizer: the one beside the model, otherwise that which the model was compiled with.
        step: The train step of a custom loop; None where there is none.
        dataset: Batches; None where there are none.
    """

    model: Any
    optimizer: Any
    step: Callable[..., Any] | None
    dataset: Any


def build_model(entry: str) -> tuple[Any, Any]:
    """Return the model that the user's function `entry` builds, and the dataset that it returns with it, or None.

    Raises:
        EntryPointError: There is no such function.
        PrecScopeError: It raised, or returned something else.
    """
    built = _call(entry)
    model, dataset = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(model, keras.Model) or not isinstance(dataset, (tf.data.Dataset, type(None))):
        raise PrecScopeError(
            f"{entry} must return a compiled keras.Model, or that and a tf.data.Dataset; it returned "
            f"{type(built).__name__}."
        )
    return model, dataset


def build_training(entry: str) -> BuiltTraining:
    """Return what the user's function `entry` builds to replay steps with, in whatever order it returns the parts.

    Raises:
        EntryPointError: There is no such function.
        PrecScopeError: It raised, or returned something else.
    """
    built = _call(entry)
    parts = built if isinstance(built, tuple) else (built,)
    model = _first(parts, keras.Model)
    optimizer = _first(parts, keras.optimizers.Optimizer)
    dataset = _first(parts, tf.data.Dataset)
    others = [part for part in parts if all(part is not known for known in (model, optimizer, dataset))]
    step = next((part for part in others if callable(part)), None)
    if optimizer is None:
        optimizer = getattr(model, "optimizer", None)
    if model is None or optimizer is None or any(part is not step for part in others):
        returned = ", ".join(type(part).__name__ for part in parts)
        lacks = "" if model is None or optimizer is not None else ", and the model is not compiled"
        raise PrecScopeError(f"{entry} returned {returned}{lacks}. It must return {BUILT_FOR_REPLAY}.")
    return BuiltTraining(model, optimizer, step, dataset)


def _call(entry: str) -> Any:
    build = load_entry_point(entry)
    try:
        return build()
    except (Exception, SystemExit) as error:  # a user's code
        raise PrecScopeError(f"{entry} raised {where_it_failed(error)}") from error


def _first(parts: tuple[Any, ...], kind: type) -> Any:
    return next((part for part in parts if isinstance(part, kind)), None)
