"""What Keras makes of a train step, and what `fit` counts: train functions, running loss, steps of an epoch."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from precscope.probes.internals.distribution import local_sum
from precscope.probes.internals.layer_calls import set_instance_attribute

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "build_train_function",
    "compilation",
    "forget_traced_functions",
    "running_loss",
    "steps_per_epoch",
    "usual_batch",
]


def build_train_function(
    model: Any, step: Callable[[Any], Any], take: Callable[[Any], None] | None = None
) -> Callable[[Any], Any]:
    """Return what Keras would make of `step` in place of `model.train_step`, and leave the model as it was.

    Args:
        model: A compiled model.
        step: The train step.
        take: Called with each batch before the step gets it, in the graph around the step, which XLA does not compile.
    """
    convert = model._autoconvert_optionals  # Keras' last wrapper around the compiled step

    def converted(step_function: Any) -> Callable[[Any], Any]:
        plain = convert(step_function)

        def taking(data: Any) -> Any:
            if take is not None:
                take(data)
            return plain(data)

        return taking

    before = model.train_function
    shadows = {
        "train_step": step,
        "make_train_function": type(model).make_train_function.__get__(model),
        "_autoconvert_optionals": converted,
    }
    with ExitStack() as stack:
        stack.callback(setattr, model, "train_function", before)
        for name, shadow in shadows.items():
            stack.callback(set_instance_attribute(model, name, shadow))
        model.make_train_function(force=True)
        return model.train_function


def compilation(model: Any) -> Any:
    """Return an object that another `model.compile` replaces; None before the first."""
    return getattr(model, "_loss_tracker", None)


def running_loss(model: Any) -> Any:
    """Return what `fit` has added up of the epoch's loss, on this worker; None where there is no such number."""
    total = getattr(getattr(model, "_loss_tracker", None), "total", None)
    return None if total is None else local_sum(total)


def usual_batch(model: Any, steps: int) -> int | None:
    """Return the batch size, right after the first call of an epoch that made `steps` train steps; None if unknown.

    Keras' loss tracker has counted the examples by then.
    """
    count = getattr(getattr(model, "_loss_tracker", None), "count", None)
    examples = 0 if count is None else int(local_sum(count))
    return examples // steps if examples >= steps else None


def steps_per_epoch(model: Any) -> int | None:
    """Return how many train steps an epoch of the running `fit` has, None where that is unknown."""
    parameters = getattr(getattr(model, "history", None), "params", None) or {}
    steps = parameters.get("steps")
    return steps if isinstance(steps, int) and steps > 0 else None


def forget_traced_functions(model: Any) -> None:
    """Let `fit`, `evaluate` and `predict` trace anew: what was traced keeps the dtypes that it was traced in."""
    for name in ("train_function", "test_function", "predict_function"):
        if hasattr(model, name):
            setattr(model, name, None)
