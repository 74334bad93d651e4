"""A train step that leaves nothing behind: forward and backward on given data, without the update.

The step that trains is traced once more, as a tf.function of its own, under the dtype policies that are asked for. The
optimizer's `apply` only hands out its gradients meanwhile. Every variable that the trace may write (BatchNorm's moving
statistics, the states of seed generators, metrics, whatever the user's own code writes) is saved before the step runs
and put back afterwards, bit for bit. So two steps in a row start from the same state and draw the same random numbers;
Keras' random functions draw in float32 in both.

Under a strategy with several replicas it runs as the first of them, alone, on what it is given.

It is not compiled by XLA unless asked for: that would cost minutes for a large model, to run a few times. XLA may keep
in float32 what the policy rounds to 16 bits, so a shadow step shows what the policy says, which is at times worse than
what the compiled training computes.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from precscope.options import Options
from precscope.probes.internals import random_draws
from precscope.probes.internals.distribution import in_first_replica
from precscope.probes.internals.graphs import current_graph
from precscope.probes.internals.layer_calls import kept_losses, set_instance_attribute
from precscope.probes.internals.optimizers import inner_optimizer, multiplier, optimized_variables
from precscope.probes.internals.random_draws import equal_random_draws
from precscope.probes.internals.tf_functions import (
    assign_variable,
    converted_function,
    inlined_functions,
    optimized_once,
    read_variable,
    written_variables,
)
from precscope.probes.layer_policies import layer_policies, model_layers
from precscope.probes.model_records import ModelRecords
from precscope.probes.reading import TensorKey

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

__all__ = ["ShadowResult", "ShadowStep", "ShadowTrace"]


@dataclass(frozen=True)
class ShadowResult:
    """What one shadow step gave; tensors are on the device.

    Attributes:
        loss: The unscaled loss, where the step calls `optimizer.scale_loss`; None elsewhere.
        loss_scale: The scale that the gradients carry.
        gradients: Gradients of weights as the optimizer receives them, scaled, dense, by layer and variable. Empty
            where the step did not reach the optimizer in a way that can be followed.
        kept: What taps kept, by their keys.
    """

    loss: float | None
    loss_scale: float
    gradients: dict[TensorKey, Any]
    kept: dict[Hashable, Any]


@dataclass
class ShadowTrace:
    """A shadow step while it is traced: what taps see of it.

    Attributes:
        loss_scale: float32 [], the scale that multiplies the loss.
        extra: Tensors that were given to `ShadowStep.run`.
    """

    loss_scale: Any
    extra: Any
    _graph: Any = field(default_factory=current_graph)
    kept: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def is_at_root(self) -> bool:
        """Whether a tensor that exists now can be kept: not inside a loop or a branch of the step."""
        return current_graph() is self._graph

    def keep(self, key: Hashable, tensor: Any) -> None:
        """Hand `tensor` out of the step, under `key`; a key that is used again replaces what it held."""
        self.kept[key] = tensor


@dataclass(frozen=True)
class _Traced:
    function: Any
    keys: list[Hashable]
    written: list[Any]
    kept_bytes: int
    uneven_draws: tuple[str, ...]


class ShadowStep:
    """Runs the train step of a model without its update; model, optimizer and metrics stay as they are.

    A step is traced once for each set of shapes, dtypes and arguments that are no tensors.

    Args:
        model: A built Keras model.
        optimizer: Its optimizer, built.
        step: The train step: a tf.function, or a Python function that may be traced. By default `model.train_step`,
            whose one argument is a batch as `fit` hands it out: (x, y), (x, y, sample_weight), ...
        policies: Names of dtype policies by layer id, set while the step is traced; see
            `precscope.probes.layer_policies`.
        taps: Called with the trace; returns a context that holds while the step is traced, such as `observed_layers`.
        jit_compile: Whether XLA compiles the step.

    Attributes:
        traces: How many times the step was traced.
        trace_time_ns: What that took, in all.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        step: Callable[..., Any] | None = None,
        policies: Mapping[str, str] | None = None,
        taps: Callable[[ShadowTrace], AbstractContextManager[Any]] | None = None,
        jit_compile: bool = False,
    ) -> None:
        self.traces = self.trace_time_ns = 0
        self._model = model
        self._optimizer = optimizer
        self._step = model.train_step if step is None else step
        self._policies = dict(policies or {})
        self._taps = taps
        self._jit_compile = jit_compile
        self._traced: dict[Hashable, _Traced] = {}

    def run(self, *args: Any, loss_scale: float | None = None, extra: Any = (), **kwargs: Any) -> ShadowResult:
        """Run the step once.

        Args:
            *args: The step's arguments.
            loss_scale: What multiplies the loss; None for the optimizer's own scale, 1 where it scales nothing.
            extra: A structure of tensors for the taps.
            **kwargs: The step's arguments.

        Raises:
            tf.errors.ResourceExhaustedError: It does not fit into the device's memory; nothing is changed.
            Exception: Whatever the step raises; nothing is changed.
        """
        if loss_scale is None:
            loss_scale = multiplier(self._optimizer)
        traced, inputs = self._trace(args, kwargs, extra, loss_scale)
        # It runs a few times: a second pass of the graph's optimizer costs more than it brings.
        with _restored(traced.written), optimized_once():
            outputs = traced.function(*inputs)
        kept = dict(zip(traced.keys, outputs, strict=True))
        loss = kept.pop(_LOSS, None)
        gradients = {key.tensor: kept.pop(key) for key in list(kept) if isinstance(key, _Gradient)}
        return ShadowResult(None if loss is None else float(loss), loss_scale, gradients, kept)

    def kept_bytes(self, *args: Any, loss_scale: float = 1.0, extra: Any = (), **kwargs: Any) -> int:
        """Return the bytes of all that `run` with these arguments would hand out; the step is traced, not run.

        What has no static shape is not counted.
        """
        return self._trace(args, kwargs, extra, loss_scale)[0].kept_bytes

    @property
    def uneven_draws(self) -> tuple[str, ...]:
        """Kinds of ops in the traces that draw other random numbers in the next run, or in another dtype."""
        return tuple(sorted({kind for traced in self._traced.values() for kind in traced.uneven_draws}))

    def _trace(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], extra: Any, loss_scale: float
    ) -> tuple[_Traced, tuple[Any, ...]]:
        leaves, rebuild = _split((args, kwargs))
        tensors = [leaf for leaf in leaves if _is_data(leaf)]
        inputs = (tensors, tf.constant(loss_scale, tf.float32), extra)
        key = (tuple(map(_signature, leaves)), tuple(map(_signature, tf.nest.flatten(extra))))
        if key not in self._traced:
            keys: list[Hashable] = []

            def body(tensors: Sequence[Any], scale: Any, extra: Any) -> list[Any]:
                given = iter(tensors)
                args, kwargs = rebuild([next(given) if _is_data(leaf) else leaf for leaf in leaves])
                kept = self._body(args, kwargs, ShadowTrace(scale, extra))
                keys[:] = kept
                return list(kept.values())

            start_ns = time.perf_counter_ns()
            function = tf.function(body, autograph=False, jit_compile=self._jit_compile)
            concrete = function.get_concrete_function(*inputs)
            self.traces += 1
            self.trace_time_ns += time.perf_counter_ns() - start_ns
            self._traced[key] = _Traced(
                function,
                keys,
                written_variables(concrete),
                sum((x.shape.num_elements() or 0) * x.dtype.size for x in concrete.outputs),
                random_draws.uneven_draws(concrete),
            )
        return self._traced[key], inputs

    def _body(self, args: Any, kwargs: Any, trace: ShadowTrace) -> dict[Hashable, Any]:
        step = self._step
        with ExitStack() as stack:
            stack.enter_context(in_first_replica(self._model.distribute_strategy))
            stack.enter_context(kept_losses(list(model_layers(self._model).values())))
            stack.enter_context(layer_policies(self._model, self._policies))
            stack.enter_context(equal_random_draws())
            stack.enter_context(self._without_update(trace))
            if self._taps is not None:
                stack.enter_context(self._taps(trace))
            if hasattr(step, "python_function"):
                step = converted_function(step)
            stack.enter_context(inlined_functions())
            step(*args, **kwargs)
        return trace.kept

    @contextmanager
    def _without_update(self, trace: ShadowTrace) -> Iterator[None]:
        """Let the optimizer scale by the trace's scale, and hand out its gradients in place of an update."""
        optimizer = self._optimizer
        names = ModelRecords(self._model, Options()).variable_name
        # A replica hands over its share of the batch's loss: Keras divides its mean by their number.
        replicas = float(self._model.distribute_strategy.num_replicas_in_sync)

        def scale_loss(loss: Any) -> Any:
            if trace.is_at_root:
                trace.keep(_LOSS, tf.reduce_mean(tf.cast(loss, tf.float32)) * replicas)
            return keras.ops.multiply(loss, trace.loss_scale)

        def apply(grads: Any, trainable_variables: Any = None) -> None:
            variables = trainable_variables or optimized_variables(optimizer)
            for variable, gradient in zip(variables, grads, strict=True):
                owner = names(variable)
                if gradient is not None and owner is not None and trace.is_at_root:
                    trace.keep(
                        _Gradient(TensorKey(owner[0], "weight_gradient", owner[1])), tf.convert_to_tensor(gradient)
                    )

        with ExitStack() as stack:
            for shadowed in {id(o): o for o in (optimizer, inner_optimizer(optimizer))}.values():
                stack.callback(set_instance_attribute(shadowed, "scale_loss", scale_loss))
                stack.callback(set_instance_attribute(shadowed, "apply", apply))
            yield


@dataclass(frozen=True)
class _Gradient:
    tensor: TensorKey


_LOSS = object()


@contextmanager
def _restored(handles: Sequence[Any]) -> Iterator[None]:
    """Give variables back the values that they had; they are copies, for a buffer may be written in place."""
    before = [read_variable(handle) for handle in handles]
    try:
        yield
    finally:
        for handle, value in zip(handles, before, strict=True):
            assign_variable(handle, value)


def _split(arguments: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """Return the leaves of a step's arguments, arrays as tensors, and what puts such leaves together again."""
    leaves = [tf.convert_to_tensor(leaf) if _is_array(leaf) else leaf for leaf in tf.nest.flatten(arguments)]
    return leaves, lambda given: tf.nest.pack_sequence_as(arguments, given)


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "__array__") and not tf.is_tensor(leaf) and not isinstance(leaf, (tf.Variable, keras.Variable))


def _is_data(leaf: Any) -> bool:
    return tf.is_tensor(leaf) and not isinstance(leaf, tf.Variable)


def _signature(leaf: Any) -> Hashable:
    """Return what of an argument a trace depends on."""
    if _is_data(leaf):
        return tf.type_spec_from_value(leaf)
    return leaf if isinstance(leaf, (int, float, str, bool, type(None))) else id(leaf)
