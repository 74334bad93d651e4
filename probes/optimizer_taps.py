"""Taps on the optimizer: the loss before scaling, weight gradients as they arrive, weights, lost updates, the scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from precscope.probes.internals.layer_calls import set_instance_attribute
from precscope.probes.internals.optimizers import loss_scale, optimized_variables, update_counter, updates_every_step
from precscope.probes.reading import TensorKey
from precscope.probes.scaling_misuse import ScalingWatch

if TYPE_CHECKING:
    from precscope.probes.recorder import Recorder

__all__ = ["OptimizerTaps"]

#: Resolves a variable to the id of the layer that owns it and its name there; None where it is not selected.
Names = Callable[[Any], tuple[str, str] | None]


class OptimizerTaps:
    """Puts taps on an optimizer's `scale_loss` and `apply` while a probed step is traced.

    Args:
        optimizer: The optimizer.
        names: Resolves its variables.
        recorder: Takes what is recorded.
        weights: Whether to record weights.
        gradients: Whether to record their gradients.
        leads: Whether the step's loss, loss scale and count of updates are this optimizer's, where there are several.

    Attributes:
        misuse: Tells how the step that was traced last uses the loss scale.
    """

    def __init__(
        self,
        optimizer: Any,
        names: Names,
        recorder: Recorder,
        weights: bool = True,
        gradients: bool = True,
        leads: bool = True,
    ) -> None:
        self._leads = leads
        self.misuse = ScalingWatch(optimizer)
        self._weights = weights
        self._gradients = gradients
        self._optimizer = optimizer
        self._names = names
        self._recorder = recorder

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Shadow the two methods for as long as the context lasts."""
        optimizer = self._optimizer
        self.misuse.begin()
        with ExitStack() as stack:
            for name, tapped in (("scale_loss", self._scale_loss(optimizer)), ("apply", self._apply(optimizer))):
                stack.callback(set_instance_attribute(optimizer, name, tapped))
            yield

    def _scale_loss(self, optimizer: Any) -> Callable[[Any], Any]:
        original = optimizer.scale_loss

        def scale_loss(loss: Any) -> Any:
            if self._leads:
                self._recorder.record_loss(loss)
            scaled = original(loss)
            self.misuse.scaled(loss, scaled)
            return scaled

        return tf.autograph.experimental.do_not_convert(scale_loss)

    def _apply(self, optimizer: Any) -> Callable[..., Any]:
        original = optimizer.apply

        def apply(grads: Any, trainable_variables: Any = None) -> Any:
            grads = list(grads)
            self.misuse.applied(grads)
            # Inside control flow (a step that accumulates by hand, say) only the plain path is safe.
            if self._recorder.place() != "root" or not optimizer.built:
                return original(grads, trainable_variables)
            given = trainable_variables
            variables = optimized_variables(optimizer) if given is None else list(given)
            return self._recorded_apply(original, grads, variables, given)

        return tf.autograph.experimental.do_not_convert(apply)

    def _recorded_apply(
        self, original: Callable[..., Any], grads: list[Any], variables: Sequence[Any], given: Any
    ) -> Any:
        optimizer, recorder = self._optimizer, self._recorder
        counter = update_counter(optimizer)
        # identity: what is read must be the value before the update, whatever runs when.
        before, scale = tf.identity(counter), _identity(loss_scale(optimizer))
        owners = [(index, self._names(variable)) for index, variable in enumerate(variables)]
        named = [(index, owner) for index, owner in owners if owner is not None]
        weights: dict[int, Any] = {}
        for index, (layer, name) in named:
            if self._gradients:
                grads[index] = self._record_gradient(TensorKey(layer, "weight_gradient", name), grads[index])
            if self._weights:
                weight = tf.identity(variables[index].value)
                weights[index] = recorder.record(TensorKey(layer, "weight", name), weight)
        result = original(grads, None if given is None else variables)
        for index, (layer, name) in named:
            known = index in weights and isinstance(grads[index], tf.Tensor)
            if known and updates_every_step(optimizer):
                after = tf.identity(variables[index].value)
                recorder.record_update_of(TensorKey(layer, "weight", name), weights[index], after, grads[index])
        if self._leads:
            recorder.record_update(scale, before, tf.identity(counter))
        return result

    def _record_gradient(self, key: TensorKey, gradient: Any) -> Any:
        if isinstance(gradient, tf.IndexedSlices):
            note = "sparse: the gradient's rows for the items in the batch, duplicates not yet added up"
            values = self._recorder.record(key, gradient.values, note)
            return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
        return gradient if gradient is None else self._recorder.record(key, gradient)


def _identity(value: Any) -> Any:
    return tf.identity(value) if tf.is_tensor(value) or isinstance(value, tf.Variable) else value
