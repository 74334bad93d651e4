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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import tensorflow as tf

from precscope.probes.internals.distribution import shares
from precscope.probes.internals.optimizers import update_counter
from precscope.probes.weight_guard import WeightGuard

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from precscope.probes.sampling_loop import Costs

__all__ = ["MOST_BATCH_BYTES", "Given", "Tripped", "Tripwire", "loss_among", "without_optionals"]

#: What the batches since the last look may take.
MOST_BATCH_BYTES = 256 * 2**20


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
        self._guard: WeightGuard | None = None
        self._given: list[Given] = []
        self._given_bytes = 0
        self._loss: Any = None
        self._off = False

    @property
    def is_on(self) -> bool:
        """Whether steps are still watched."""
        return not self._off

    def updates(self) -> int:
        """Return how many updates the optimizer has made; waits for the device."""
        return int(update_counter(self._optimizer()).numpy())

    def before_step(self, step: int, args: tuple[Any, ...], kwargs: dict[str, Any], function: Any = None) -> None:
        """Take note of a step that is about to run; it needs a model that is built."""
        if self._off or not self._model.built:
            return
        start_ns = time.perf_counter_ns()
        try:
            if self._guard is None or not self._guard.fits(self._optimizer()):
                self.look()  # the first step builds the optimizer, and `compile` may replace it
                self._guard = WeightGuard(self._model, self._optimizer())
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

    def _look(self, guard: WeightGuard) -> None:
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
