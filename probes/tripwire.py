"""Keeps what it takes to run a train step again: the weights before it and its batch, of the first step that goes bad.

Before each step the weights are copied beside themselves on the device, unless an earlier step has turned out bad: then
the copy stays as it was before that step. Whether the step before was good is told by the weights (finite still?), by
the loss that it returned, and by the optimizer (did it skip the step?). All of that is queued on the device and waited
for nowhere. So the train function stays the one that Keras built, and what it computes stays the same bit for bit.

The batches since the last look are kept as they are, without a copy. When they grow beyond `MOST_BATCH_BYTES` the trip
is looked at at once, which waits for the device.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from precscope.probes.internals import optimizers
from precscope.probes.internals.distribution import plain_variable, shares
from precscope.probes.internals.layer_tree import state_variables
from precscope.probes.internals.optimizers import is_dynamic, scale_variable, update_counter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from precscope.probes.sampling_loop import Costs

__all__ = ["MOST_BATCH_BYTES", "Given", "Tripped", "Tripwire", "loss_among", "without_optionals"]

#: What the batches since the last look may take.
MOST_BATCH_BYTES = 256 * 2**20
#: Variables are joined up to this size, so that few kernels run and the copies in between stay small.
_GROUP_BYTES = 64 * 2**20
# What is kept on the device: which step tripped (-1 for none), the step that the copy was made before, whether the loss
# was finite after the last step, and the optimizer's counter then.
_TRIPPED, _COPIED, _LOSS_WAS_FINITE, _UPDATES = range(4)


class Given(NamedTuple):
    """What one step was given, and the function that makes it (None for `model.train_step`)."""

    step: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    function: Any


@dataclass(frozen=True)
class Tripped:
    """The first bad step since the tripwire was armed.

    Attributes:
        given: Its batch.
        weights: Every variable of the model before it, by path.
        loss_scale: The loss scale that it had; None without one.
        is_lost: Whether the weights are not finite any more.
    """

    given: Given
    weights: dict[str, NDArray[Any]]
    loss_scale: float | None
    is_lost: bool


class Tripwire:
    """Watches the steps of one session; once the weights are lost it stays as it is.

    Args:
        model: The model that is trained.
        optimizer: Returns its optimizer.
        tripped: Called with each bad step, when it is looked at.
        failed: Called with an exception of the tripwire's own, which is off from then on.
        costs: Takes the host's time.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Callable[[], Any],
        tripped: Callable[[Tripped], None],
        failed: Callable[[Exception], None],
        costs: Costs,
    ) -> None:
        self._costs = costs
        self._model = model
        self._optimizer = optimizer
        self._report = tripped
        self._failed = failed
        self._guard: _Guard | None = None
        self._given: list[Given] = []
        self._given_bytes = 0
        self._loss: Any = None
        self._off = False

    @property
    def is_on(self) -> bool:
        """Whether steps are still watched."""
        return not self._off

    def before_step(self, step: int, args: tuple[Any, ...], kwargs: dict[str, Any], function: Any = None) -> None:
        """Take note of a step that is about to run; it needs a model that is built."""
        if self._off or not self._model.built:
            return
        start_ns = time.perf_counter_ns()
        try:
            if self._guard is None or not self._guard.fits(self._optimizer()):
                self.look()  # the first step builds the optimizer, and `compile` may replace it
                self._guard = _Guard(self._model, self._optimizer())
            self._guard.pass_by(step, self._loss, copies=True)
            self._given.append(Given(step, args, kwargs, function))
            self._given_bytes += sum(_bytes(leaf) for leaf in tf.nest.flatten(shares((args, kwargs))))
            if self._given_bytes > MOST_BATCH_BYTES:
                self.look()
        except Exception as error:
            self._switch_off(error)
        self._costs.add("tripwire", time.perf_counter_ns() - start_ns)

    def after_step(self, result: Any) -> None:
        """Take note of what a step returned: the loss is among it, or the first scalar is taken for it."""
        self._loss = None if self._off else loss_among(result)

    def look(self) -> None:
        """Look whether a step tripped, and report it; waits for the device."""
        if self._off or self._guard is None or not self._given:
            return
        start_ns = time.perf_counter_ns()
        try:
            self._look(self._guard)
        except Exception as error:
            self._switch_off(error)
        self._costs.add("tripwire", time.perf_counter_ns() - start_ns, 0)

    def _look(self, guard: _Guard) -> None:
        guard.pass_by(self._given[-1].step + 1, self._loss, copies=False)
        step = guard.tripped_step()
        given = next((item for item in self._given if item.step == step), None)
        self._given, self._given_bytes, self._loss = [], 0, None
        if step is None or given is None:
            return
        weights, loss_scale = guard.copies()
        tripped = Tripped(given, weights, loss_scale, not guard.weights_are_finite())
        self._off = tripped.is_lost  # nothing after it tells more
        guard.arm()
        if tripped.is_lost:
            self._guard = None
        self._report(tripped)

    def _switch_off(self, error: Exception) -> None:
        self._off, self._guard, self._given = True, None, []
        self._failed(error)


class _Guard:
    """The copies on the device, and the function that runs beside each step."""

    def __init__(self, model: Any, optimizer: Any) -> None:
        self.optimizer = optimizer
        self._is_dynamic = is_dynamic(optimizer)
        self._scale = scale_variable(optimizer)
        self._fixed_scale = None if self._scale is not None else optimizers.loss_scale(optimizer)
        self._is_built = bool(optimizer.built)
        self._names, variables = zip(*state_variables(model), strict=True)
        self._variables = [variable.value for variable in variables]
        self._watched = {id(variable.value) for variable in model.trainable_variables}
        self._groups = _grouped(self._variables)
        self._shadows = [plain_variable(self._joined(group), "precscope_weights") for group in self._groups]
        scale = 0.0 if self._scale is None else tf.identity(self._scale)
        self._scale_before = plain_variable(scale, "precscope_scale")
        self._state = plain_variable(np.array([-1, -1, 1, self._updates() - 1]), "precscope_tripwire")
        self._function = tf.function(self._pass_by, autograph=False, reduce_retracing=True)

    def fits(self, optimizer: Any) -> bool:
        """Tell whether this guard was made for the optimizer as it is."""
        return self.optimizer is optimizer and self._is_built == bool(optimizer.built)

    def pass_by(self, step: int, loss: Any, *, copies: bool) -> None:
        """Judge the step before `step`, and copy the weights unless it, or one before it, was bad."""
        loss = tf.constant(0.0) if loss is None else tf.cast(loss, tf.float32)
        self._function(tf.constant(step, tf.int64), tf.reshape(loss, []), copies)

    def _pass_by(self, step: Any, loss: Any, copies: bool) -> None:
        state = self._state.read_value()
        joined = [self._joined(group) for group in self._groups]
        finite = [
            tf.reduce_all(tf.math.is_finite(values))
            for group, values in zip(self._groups, joined, strict=True)
            if values.dtype.is_floating and self._is_watched(group)
        ]
        loss_is_finite = tf.math.is_finite(loss)
        good = tf.reduce_all(tf.stack([*finite, loss_is_finite | (state[_LOSS_WAS_FINITE] == 0)]))
        updates = tf.cast(update_counter(self.optimizer), tf.int64)
        if self._is_dynamic:
            good &= (updates > state[_UPDATES]) | (state[_COPIED] < 0)
        tripped = tf.where((state[_TRIPPED] < 0) & ~good, state[_COPIED], state[_TRIPPED])
        if copies:
            keep = tripped >= 0
            for shadow, values in zip(self._shadows, joined, strict=True):
                shadow.assign(tf.where(keep, shadow.read_value(), values))
            if self._scale is not None:
                scale = tf.cast(self._scale.read_value(), tf.float32)
                self._scale_before.assign(tf.where(keep, self._scale_before.read_value(), scale))
        copied = step if copies else tf.constant(-1, tf.int64)  # what was judged is not judged again
        self._state.assign(tf.stack([tripped, copied, tf.cast(loss_is_finite, tf.int64), updates]))

    def _is_watched(self, group: Sequence[int]) -> bool:
        return any(id(self._variables[index]) in self._watched for index in group)

    def _joined(self, group: Sequence[int]) -> Any:
        return tf.concat([tf.reshape(self._variables[index].read_value(), [-1]) for index in group], 0)

    def _updates(self) -> int:
        return int(update_counter(self.optimizer).numpy())

    def tripped_step(self) -> int | None:
        """Return the step that tripped; waits for the device."""
        step = int(self._state.numpy()[_TRIPPED])
        return step if step >= 0 else None

    def copies(self) -> tuple[dict[str, NDArray[Any]], float | None]:
        """Return the copied weights by path, and the copied loss scale."""
        weights: dict[str, NDArray[Any]] = {}
        for group, shadow in zip(self._groups, self._shadows, strict=True):
            values, begin = shadow.numpy(), 0
            for index in group:
                shape = self._variables[index].shape
                size = int(np.prod(shape))
                weights[self._names[index]] = values[begin : begin + size].reshape(shape)
                begin += size
        ordered = {name: weights[name] for name in self._names}
        return ordered, self._fixed_scale if self._scale is None else float(self._scale_before.numpy())

    def weights_are_finite(self) -> bool:
        """Tell whether the trained weights are finite now."""
        return all(
            bool(tf.reduce_all(tf.math.is_finite(self._joined(group))).numpy())
            for group in self._groups
            if self._is_watched(group)
        )

    def arm(self) -> None:
        """Watch for the next bad step."""
        self._state.assign([-1, -1, 1, self._updates() - 1])


def _grouped(variables: Sequence[Any]) -> list[list[int]]:
    """Return positions of variables of one dtype, together up to a size."""
    groups: dict[Any, list[list[int]]] = defaultdict(list)
    sizes: dict[Any, int] = {}
    for index, variable in enumerate(variables):
        key = (variable.dtype, variable.device)
        size = int(np.prod(variable.shape)) * variable.dtype.size
        if key not in sizes or sizes[key] + size > _GROUP_BYTES:
            groups[key].append([])
            sizes[key] = 0
        groups[key][-1].append(index)
        sizes[key] += size
    return [group for of_one_kind in groups.values() for group in of_one_kind]


def _bytes(leaf: Any) -> int:
    if tf.is_tensor(leaf) and leaf.shape.is_fully_defined():
        return int(leaf.shape.num_elements()) * int(leaf.dtype.size or 8)
    return int(getattr(leaf, "nbytes", 0))


def loss_among(result: Any) -> Any:
    """Return what of a train step's result is its loss: what is called so, or the first scalar; None without one."""
    loss = result.get("loss") if isinstance(result, dict) else None
    scalars = [leaf for leaf in tf.nest.flatten(result) if isinstance(leaf, tf.Tensor) and leaf.shape.rank == 0]
    floats = [leaf for leaf in scalars if leaf.dtype.is_floating]
    return loss if loss is not None else next(iter(floats), None)


def without_optionals(batch: Any) -> Any:
    """Return a batch with None where TensorFlow's iterator says that there is nothing, as Keras does."""
    return keras.tree.map_structure(lambda leaf: None if isinstance(leaf, tf.experimental.Optional) else leaf, batch)
