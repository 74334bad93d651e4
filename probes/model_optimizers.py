"""The optimizers that train a model: those that the user gave, or those that the model holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from precscope.probes.internals.optimizers import leading_optimizer, optimizers_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ModelOptimizers"]


class ModelOptimizers:
    """Finds a model's optimizers whenever it is asked: `compile` may replace them.

    Args:
        model: The model that is trained.
        given: The optimizer of a custom loop, a list of them, or None.

    Attributes:
        given: The optimizers that were given, the leading one first.
    """

    def __init__(self, model: Any, given: Any) -> None:
        self._model = model
        self.given: Sequence[Any] = given if isinstance(given, (list, tuple)) else [given] * (given is not None)
        self._found: Sequence[Any] = ()

    def leading(self) -> Any:
        """Return the optimizer that loss, loss scale and applied steps are taken from.

        That is the first that was given. Otherwise it is the model's own, or the first that is used where that is not.
        """
        if self.given:
            return self.given[0]
        if not self._found or self._found[0] is not self._model.optimizer:  # this is asked often, and the search slow
            self._found = optimizers_of(self._model)
        return leading_optimizer(self._found)

    def all(self) -> Sequence[Any]:
        """Return all of them."""
        return self.given or optimizers_of(self._model)
