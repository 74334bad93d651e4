"""What a session asks of a model before it begins, and how a training ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras

from precscope.advice.wording import counted
from precscope.errors import SessionError
from precscope.probes.legacy import check_loss_scale_arguments

if TYPE_CHECKING:
    from precscope.records import RunStatus

__all__ = ["check_model", "how_it_ended", "why_nothing_was_recorded"]


def check_model(model: Any, optimizer: Any) -> None:
    """Refuse what cannot be profiled.

    Raises:
        SessionError: The backend is not TensorFlow, `model` is no Keras model or not compiled, or `optimizer` is none.
    """
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise SessionError(
            f"PrecScope needs Keras on the TensorFlow backend, this is {backend!r}. Set KERAS_BACKEND=tensorflow "
            "before Keras is imported."
        )
    if not isinstance(model, keras.Model):
        raise SessionError(f"precscope.profile expects a keras.Model, received {type(model).__name__}.")
    if optimizer is None and not (model.compiled and model.optimizer is not None):
        raise SessionError(
            f"Model {model.name!r} is not compiled. Call model.compile(optimizer=..., loss=...) before "
            "precscope.profile, or, for a custom training loop, give it the optimizer: profile(model, run_dir, "
            "optimizer=optimizer)."
        )
    for one in optimizer if isinstance(optimizer, (list, tuple)) and optimizer else [optimizer]:
        check_loss_scale_arguments(model.optimizer if one is None else one)
        if optimizer is not None and not isinstance(one, keras.optimizers.Optimizer):
            raise SessionError(
                f"`optimizer` must be a keras.optimizers.Optimizer or a list of them, received {type(one).__name__}."
            )


def how_it_ended(error: BaseException | None) -> tuple[RunStatus, str | None]:
    """Return the run's status and the reason, from the exception that left the `with` block."""
    if error is None or (isinstance(error, SystemExit) and not error.code):
        return "finished", None
    reason = f"{type(error).__name__}: {error}".strip(": ")
    return ("failed" if isinstance(error, Exception) else "interrupted"), reason


def why_nothing_was_recorded(steps: int, start: int) -> str:
    """Return what to tell the user of a training that ended well and of which no step was sampled.

    Args:
        steps: How many train steps were seen.
        start: The first step that the options allow to be sampled.
    """
    if steps == 0:
        return (
            "nothing was recorded: no train step was seen. Expected a fit or a train_on_batch of this model inside the "
            "session, or a loop of your own whose step went through session.instrument."
        )
    seen = f"nothing was recorded: {counted(steps, 'train step')} {'was' if steps == 1 else 'were'} seen, and"
    if steps == 1:
        return f"{seen} the first one is never sampled, for it builds the model. Train for two steps or more."
    if start >= steps:
        return f"{seen} the option start={start} lets no step before that one be sampled."
    return f"{seen} none of them was sampled."
