"""A kept train step, run again without its update, to see where it turned non-finite."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from precscope.options import Options
from precscope.origin import StepValues
from precscope.probes.internals.layer_tree import state_variables
from precscope.probes.internals.tf_functions import converted_function
from precscope.probes.model_records import ModelRecords
from precscope.probes.optimizer_taps import OptimizerTaps
from precscope.probes.reading import reading_of
from precscope.probes.recorder import Recorder
from precscope.probes.shadow_step import ShadowStep
from precscope.probes.taps import LayerTaps
from precscope.probes.tripwire import loss_among

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from precscope.probes.reading import Reading, TracedTensor
    from precscope.probes.shadow_step import ShadowTrace

__all__ = ["Replay", "set_weights", "step_values", "weights_set"]

_MATRIX = "precscope matrix"


class Replay:
    """Runs train steps of a model again, with every tap on; model, optimizer and metrics stay as they are.

    The step is not compiled by XLA: it computes what the dtype policies say, and XLA may keep in float32 what they
    round to 16 bits.

    Args:
        model: A built Keras model.
        optimizer: Its optimizer, built.
        function: The train step of a custom loop; None for `model.train_step`.

    Attributes:
        records: The model's layers, as the last step saw them.
    """

    def __init__(self, model: Any, optimizer: Any, function: Any = None) -> None:
        self.records = ModelRecords(model, Options())
        self._optimizer = optimizer
        self._recorder = Recorder(in_xla=False)
        self._layer_taps = LayerTaps(self.records.plans, self._recorder, self.records.selects_between)
        self.records.between.append(self._layer_taps.between)
        self._tensors: tuple[TracedTensor, ...] = ()
        self._shadow = ShadowStep(model, optimizer, self._tapped(model, function), taps=self._taps)

    def run(self, *args: Any, loss_scale: float | None = None, **kwargs: Any) -> Reading:
        """Run the step on this batch with the weights as they are, and return what was recorded.

        Args:
            *args: What the step is given; of `model.train_step` the batch as `fit` hands it out.
            loss_scale: What multiplies the loss; None for the optimizer's own scale.
            **kwargs: Keywords of the step.
        """
        result = self._shadow.run(*args, loss_scale=loss_scale, **kwargs)
        return reading_of(self._tensors, result.kept[_MATRIX].numpy())

    def values(self, reading: Reading) -> StepValues:
        """Return a replayed step as the search for the origin takes it."""
        return step_values(self.records, reading)

    def _tapped(self, model: Any, function: Any) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            made = model.train_step if function is None else function
            made = converted_function(made) if hasattr(made, "python_function") else made
            self._recorder.begin()
            try:
                result = made(*self._layer_taps.tap_batch(args), **kwargs)
                if function is not None and (loss := loss_among(result)) is not None:
                    self._recorder.record_loss(loss)  # unless the step told it to the optimizer before
                self._tensors, matrix = self._recorder.take()
            finally:
                self._recorder.cancel()
            self._trace.keep(_MATRIX, matrix)
            return result

        return step

    @contextmanager
    def _taps(self, trace: ShadowTrace) -> Iterator[None]:
        self._trace = trace
        optimizer_taps = OptimizerTaps(self._optimizer, self.records.variable_name, self._recorder)
        with ExitStack() as stack:
            stack.enter_context(self._layer_taps.installed())
            stack.enter_context(optimizer_taps.installed())
            yield


def step_values(records: ModelRecords, reading: Reading) -> StepValues:
    """Return a recorded step as the search for the origin takes it."""
    return StepValues(
        records.layers(),
        [(tensor.key.layer, tensor.key.kind, tensor.key.name) for tensor in reading.tensors],
        [tensor.dtype for tensor in reading.tensors],
        reading.scalars,
        reading.loss,
        reading.spoiled,
    )


def set_weights(model: Any, weights: Mapping[str, NDArray[Any]]) -> list[str]:
    """Give a model's variables these values, by the names of `state_variables`.

    Returns:
        What does not fit: names of variables that the model lacks, or has in another shape.
    """
    known = dict(state_variables(model))
    misfits = [name for name, value in weights.items() if name not in known or known[name].shape != value.shape]
    for name, value in weights.items():
        if name not in misfits:
            known[name].value.assign(tf.cast(value, known[name].value.dtype))
    return misfits


@contextmanager
def weights_set(model: Any, weights: Mapping[str, NDArray[Any]]) -> Iterator[None]:
    """Give a model's variables these values for a while."""
    before = [(variable.value, tf.identity(variable.value)) for _, variable in state_variables(model)]
    try:
        set_weights(model, weights)
        yield
    finally:
        for variable, value in before:
            variable.assign(value)
