"""The taps of a probed function: on all layers and optimizers that the model has when that function is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from precscope.probes.internals.layer_tree import walk_layers
from precscope.probes.lint_checks.optimizer import check_loss_scaling
from precscope.probes.optimizer_taps import OptimizerTaps
from precscope.probes.taps import LayerTaps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from precscope.options import Options
    from precscope.probes.model_optimizers import ModelOptimizers
    from precscope.probes.model_records import ModelRecords
    from precscope.probes.recorder import Recorder
    from precscope.probes.traced_lint import TracedLint

__all__ = ["ModelTaps"]


class ModelTaps:
    """Makes the taps of each probed function.

    Args:
        model: The model that is trained.
        optimizers: Its optimizers.
        options: What is recorded.
        records: Its layers, looked at again for each function.
        lint: Looks at the ops of layers while they are traced.
        tell: Tells the user, with a level.

    Attributes:
        lint: The same.
    """

    def __init__(
        self,
        model: Any,
        optimizers: ModelOptimizers,
        options: Options,
        records: ModelRecords,
        lint: TracedLint,
        tell: Callable[[Literal["info", "warning", "error"], str], None],
    ) -> None:
        self._model = model
        self._optimizers = optimizers
        self._options = options
        self._records = records
        self.lint = lint
        self._tell = tell
        self._made: tuple[OptimizerTaps, ...] = ()

    def make(self, recorder: Recorder) -> tuple[LayerTaps, *tuple[OptimizerTaps, ...]]:
        """Return taps that write to `recorder`: those of the layers, then those of each optimizer."""
        self._records.refresh()  # layers and variables that were built since
        weights, gradients = self._options.weights, self._options.gradients
        names = self._records.variable_name if weights or gradients else lambda variable: None
        leading = self._optimizers.leading()
        self._made = tuple(
            OptimizerTaps(optimizer, names, recorder, weights, gradients, leads=optimizer is leading)
            for optimizer in self._optimizers.all()
        )
        for finding in check_loss_scaling(dict(walk_layers(self._model)), leading):
            if finding.severity == "error":
                self._tell("warning", f"{finding.sentence} {finding.advice}")
        layer_taps = LayerTaps(self._records.plans, recorder, self._records.selects_between, self.lint.look)
        self._records.between.append(layer_taps.between)
        return layer_taps, *self._made

    def misuse(self) -> Iterator[str]:
        """Yield in words how the function that was traced last misuses the loss scale."""
        for taps in self._made:
            yield from taps.misuse.found()
