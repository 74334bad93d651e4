"""The batch of a probed step, handed out of it: for the reference step, and to be kept in the run directory.

The iterator is the training's, so nobody else asks it for a batch. The probed train function has the batch at hand when
it runs: it copies it into variables, before XLA begins, for there a variable may not change its shape. A custom loop's
step is given its batch by the loop. Where a strategy distributes the batch, its parts are joined.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from precscope.errors import RunDirectoryError
from precscope.kept_batches import KeptBatchWriter
from precscope.probes.internals.distribution import is_distributed, plain_variable, shares, whole_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

__all__ = ["Batch", "BatchHandout", "BatchKeeping"]

_LEAST_WITH_WEIGHTS = 3  # of fewer batches too little is seen


@dataclass(frozen=True)
class Batch:
    """What one train step was given: `step(*args, **kwargs)`.

    Attributes:
        args: Of Keras' train step one argument, the batch as `fit` hands it out.
        kwargs: Likewise.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class _Traced:
    """The variables that take batches of one structure."""

    structure: Any
    dtypes: list[Any]
    ranks: list[int]
    variables: list[Any]

    def read(self, examples: int | None = None) -> Any:
        """Return copies, of the first `examples` only if asked for: the next probed step writes the variables again."""
        given = iter([tf.identity(variable.read_value()[:examples]) for variable in self.variables])
        leaves = [next(given) if leaf is _TENSOR else leaf for leaf in tf.nest.flatten(self.structure)]
        return tf.nest.pack_sequence_as(self.structure, leaves)


_TENSOR = object()


class BatchHandout:
    """Holds the batch of the last probed step.

    Attributes:
        failure: Why batches cannot be handed out, or None.
        step: The custom loop's step that the batch was given to; None where that is the model's `train_step`.
    """

    def __init__(self) -> None:
        self.step: Callable[..., Any] | None = None
        self.failure: str | None = None
        self._traces: list[_Traced] = []
        self._last = plain_variable(np.int64(-1), "precscope_batch")
        self._first_share = plain_variable(np.int64(-1), "precscope_share")  # examples of the first replica; -1: of one
        self._given: Batch | None = None

    def put(self, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hold the arguments of a custom loop's step."""
        self.step = step
        self._given = Batch(args, kwargs)

    def take(self, data: Any) -> None:
        """Hold the batch that Keras' train step is about to be given; called where the step is traced, outside XLA."""
        if tf.executing_eagerly():
            self._given = Batch((data,), {})
            return
        parts = tf.nest.flatten(shares(data)) if any(map(is_distributed, tf.nest.flatten(data))) else []
        for leaf in [leaf for leaf in parts or tf.nest.flatten(data) if leaf is not None]:
            if not isinstance(leaf, tf.Tensor) or leaf.dtype == tf.string or leaf.shape.rank is None:
                kind = leaf.dtype.name if isinstance(leaf, tf.Tensor) else type(leaf).__name__
                self.failure = f"batches hold {kind}, and only dense tensors of numbers can be taken out of a step"
                return
            if parts and leaf.shape.rank == 0:
                self.failure = "batches hold a number for each replica, and cannot be joined"
                return
        leaves = tf.nest.flatten(whole_batch(data))
        tensors = [leaf for leaf in leaves if leaf is not None]
        first = next((leaf for leaf in parts if leaf is not None), None)
        self._first_share.assign(-1 if first is None else tf.shape(first, tf.int64)[0])
        structure = tf.nest.pack_sequence_as(data, [None if leaf is None else _TENSOR for leaf in leaves])
        place = self._place_for(structure, tensors)
        if place is None:
            return
        for variable, tensor in zip(self._traces[place].variables, tensors, strict=True):
            variable.assign(tensor)
        self._last.assign(place)

    def _place_for(self, structure: Any, tensors: list[Any]) -> int | None:
        """Return which variables take a batch of this structure: all its shapes share them."""
        dtypes, ranks = [tensor.dtype for tensor in tensors], [int(tensor.shape.rank) for tensor in tensors]
        for place, known in enumerate(self._traces):
            if (known.structure, known.dtypes, known.ranks) == (structure, dtypes, ranks):
                return place
        try:
            with tf.init_scope():
                variables = [_variable(dtype, rank) for dtype, rank in zip(dtypes, ranks, strict=True)]
        except ValueError:  # TensorFlow lets a tf.function create variables in its first trace only
            self.failure = "batches of one training have different structures"
            return None
        self._traces.append(_Traced(structure, dtypes, ranks, variables))
        return len(self._traces) - 1

    def read(self) -> Batch | None:
        """Return the batch of the last probed step, or None where there was none; that of all replicas."""
        if self._given is not None:
            return Batch(*whole_batch((self._given.args, self._given.kwargs)))
        last = int(self._last.numpy())
        return Batch((self._traces[last].read(),), {}) if last >= 0 else None

    def read_share(self) -> Batch | None:
        """Return what the first replica was given of that batch: all of it where there is one."""
        if self._given is not None:
            return Batch(*shares((self._given.args, self._given.kwargs))[0])
        last, examples = int(self._last.numpy()), int(self._first_share.numpy())
        if last < 0:
            return None
        return Batch((self._traces[last].read(None if examples < 0 else examples),), {})


def _variable(dtype: Any, rank: int) -> Any:
    empty = np.zeros([0] * rank, dtype.as_numpy_dtype)
    # On the host: a GPU's memory is the training's.
    return plain_variable(empty, "precscope_batch", "CPU:0", tf.TensorShape([None] * rank))


class BatchKeeping:
    """Keeps batches in the run directory; what cannot be kept is told once, and the training goes on.

    Args:
        directory: The run directory.
        limit_mib: What all of them may take together.
        tell: Told why no batch is kept any more.
    """

    def __init__(self, directory: Path, limit_mib: float, tell: Callable[[str], None]) -> None:
        self._writer: KeptBatchWriter | None = KeptBatchWriter(directory, int(limit_mib * 2**20))
        self._limit_mib = limit_mib
        self._leaves_weights_out = False
        self._good: dict[str, Any] | None = None  # the last weights that were finite, in the host's memory
        self._tell = tell

    def begin(self, weights: Mapping[str, Any], trained: Collection[str] | None = None) -> None:
        """Hold the weights that the training begins with, where they may be kept: its first step may lose them."""
        size_mib = sum(value.shape.num_elements() * value.dtype.size for value in weights.values()) / 2**20
        if _LEAST_WITH_WEIGHTS * size_mib <= self._limit_mib:
            self._hold(_as_arrays(dict(weights)), trained)

    def keep(
        self,
        step: int,
        handout: BatchHandout,
        read_weights: Callable[[], dict[str, Any]],
        trained: Collection[str] | None = None,
    ) -> None:
        """Keep the batch that was handed out by `step`, as group "data"; a custom loop's keywords as "keywords".

        The weights are kept beside it by name, as group "weights", as they are after it, with the states of seeds:
        a fault of numbers shows at the weights that training has reached, not at those that a model begins with. Once
        a trained weight is not finite, no batch can be replayed with it: then the last ones that were, or those that
        the training began with, are kept instead. They are left out where three such batches would not fit into the
        limit.

        Args:
            step: The train step.
            handout: Holds its batch.
            read_weights: Returns weights and states of seeds by name.
            trained: Names of the weights that are trained; by default all are. Statistics that are lost do no harm.
        """
        if self._writer is None:
            return
        try:
            if handout.failure is not None:
                raise RunDirectoryError(f"{handout.failure}.")
            batch = handout.read()
            if batch is None:
                return
            # Of Keras' step the batch itself, of a custom loop's the tuple of its arguments.
            data = batch.args[0] if handout.step is None else batch.args
            groups = {"data": _as_arrays(data)}
            if batch.kwargs:
                groups["keywords"] = _as_arrays(batch.kwargs)
            weights, are_from_before = self._weights(read_weights, groups, trained)
            groups |= {} if weights is None else {"weights": weights}
            groups["state"] = {"is_custom_loop": handout.step is not None, "weights_from_before": are_from_before}
            self._writer.keep(step, **groups)
        except RunDirectoryError as error:
            self._writer = None
            self._tell(f"batches are not kept: {error}")

    def _hold(self, weights: dict[str, Any], trained: Collection[str] | None) -> bool:
        """Hold weights for when later ones are lost, if all that are trained are finite; return whether they are."""
        is_good = all(np.isfinite(weights[name]).all() for name in (weights if trained is None else trained))
        if is_good:
            self._good = weights
        return is_good

    def _weights(
        self, read_weights: Callable[[], dict[str, Any]], batch: dict[str, Any], trained: Collection[str] | None
    ) -> tuple[dict[str, Any] | None, bool]:
        """Return the weights to keep, None where they are left out, and whether the step's own are lost."""
        if self._leaves_weights_out:
            return None, False
        weights = _as_arrays(read_weights())
        sizes_mib = [
            sum(getattr(leaf, "nbytes", 0) for leaf in tf.nest.flatten(tree)) / 2**20 for tree in (batch, weights)
        ]
        if (needed_mib := _LEAST_WITH_WEIGHTS * sum(sizes_mib)) <= self._limit_mib:
            if not self._hold(weights, trained) and self._good is not None:
                return self._good, True
            return weights, False
        self._good = None
        self._leaves_weights_out = True
        self._tell(
            f"batches are kept without the weights of their step, {sizes_mib[1]:.3g} MiB a batch: raise "
            f"keep_batches_mib to {needed_mib:.3g} for them. Without, a replay takes the weights that the model has."
        )
        return None, False


def _as_arrays(tree: Any) -> Any:
    def as_array(leaf: Any) -> Any:
        return np.asarray(leaf.numpy()) if isinstance(leaf, (tf.Tensor, tf.Variable)) else leaf

    return tf.nest.map_structure(as_array, tree)
