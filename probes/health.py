"""Two small numbers that tell, between samples, that values turned infinite or NaN."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from precscope.probes.internals.optimizers import optimized_variables
from precscope.probes.internals.train_functions import running_loss

if TYPE_CHECKING:
    from collections.abc import Callable

    from precscope.origin_records import NoticedBy

__all__ = ["Health"]


class Health:
    """Reads the epoch's running loss, which one infinite or NaN loss spoils until the epoch ends, and one small weight.

    The weight is the smallest variable of those that are trained: where a loss is NaN its gradients are, too, and after
    the update every weight that took part in the step.

    Args:
        model: The model that is trained.
        optimizer: Returns its optimizer.

    Attributes:
        last_loss: The loss that a custom loop told last, not read yet; None where it told none.
    """

    def __init__(self, model: Any, optimizer: Callable[[], Any]) -> None:
        self._model = model
        self._optimizer = optimizer
        self.last_loss: Any = None

    def complaint(self) -> NoticedBy | None:
        """Return what is not finite; None where nothing is. Waits for the device."""
        if not _is_finite(running_loss(self._model)) or not _is_finite(self.last_loss):
            return "loss"
        variables = optimized_variables(self._optimizer()) if self._optimizer().built else []
        smallest = min(variables, key=lambda variable: int(np.prod(variable.shape)), default=None)
        return None if smallest is None or _is_finite(smallest) else "weights"


def _is_finite(value: Any) -> bool:
    if value is None:
        return True
    numbers = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    return bool(np.isfinite(numbers.astype(np.float32)).all()) if numbers.dtype != object else True
