"""Copies of a model's weights on the device, made before each step unless the step before turned out bad."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from precscope.probes.internals import optimizers
from precscope.probes.internals.distribution import plain_variable
from precscope.probes.internals.layer_tree import state_variables
from precscope.probes.internals.optimizers import is_dynamic, scale_variable, update_counter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["WeightGuard"]

#: Variables are joined up to this size, so that few kernels run and the copies in between stay small.
_GROUP_BYTES = 64 * 2**20
# What is kept on the device: which step tripped (-1 for none), the step that the copy was made before, whether the loss
# was finite after the last step, and the optimizer's counter then.
_TRIPPED, _COPIED, _LOSS_WAS_FINITE, _UPDATES = range(4)


class WeightGuard:
    """The copies, and the function that runs beside each step, which makes and judges them; see `tripwire`.

    Args:
        model: A built model.
        optimizer: Its optimizer.

    Attributes:
        optimizer: The optimizer that it was made for.
    """

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
        scale = np.float32(0.0) if self._scale is None else tf.identity(self._scale)
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
