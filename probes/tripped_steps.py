"""What becomes of a step that tripped: kept in the run directory, run again, and its origin recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from precscope.error_text import error_in_a_line
from precscope.errors import RunDirectoryError
from precscope.kept_batches import KeptBatchWriter
from precscope.origin import FoundOrigin, find_origin
from precscope.probes.internals.distribution import shares, whole_batch
from precscope.probes.replay import Replay, weights_set

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from precscope.probes.origin_watch import OriginWatch
    from precscope.probes.sampling_loop import SamplingLoop
    from precscope.probes.tripwire import Tripped

__all__ = ["TrippedSteps", "as_arrays"]

#: So many steps are run again without further conditions, later fewer than one in a thousand.
_FREE_REPLAYS, _LATER_SHARE = 10, 0.001
#: How many kept steps the run directory has room for.
_MOST_KEPT = 4


class TrippedSteps:
    """Handles what the tripwire reports.

    Args:
        model: The model that is trained.
        optimizer: Returns its optimizer.
        loop: Counts the steps.
        watch: Records origins.
        directory: The run directory.
        tell: Told what could not be done.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Callable[[], Any],
        loop: SamplingLoop,
        watch: OriginWatch,
        directory: Path,
        tell: Callable[[str], None],
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._loop = loop
        self._watch = watch
        self._directory = directory
        self._tell = tell
        self._writer: KeptBatchWriter | None = None
        self._replays: dict[Any, Replay] = {}
        self._count = 0

    def handle(self, tripped: Tripped) -> None:
        """Keep the step, run it again and record where it turned non-finite."""
        if self._count >= _FREE_REPLAYS and self._count > _LATER_SHARE * self._loop.steps_seen and not tripped.is_lost:
            return
        self._count += 1
        found, note = None, None
        try:
            found, note, replay = self._run_again(tripped)
        except Exception as error:  # the training goes on, and the kept step may still be replayed by the command
            replay, note = None, f"it could not be run again at once: {error_in_a_line(error, 300)}"
        if found is None and note is None:
            if not tripped.is_lost:
                note = "run again without XLA, all values were finite"
            else:
                found = FoundOrigin("update", "update", None)
                note = "run again, its loss and its gradients were finite, so the update made the weights non-finite"
        # One step for each origin: what was seen before tells nothing new.
        kept = self._keep(tripped) if found is None or self._watch.is_new(found) else None
        self._watch.tripped(tripped, found, note, kept, None if replay is None else replay.records)

    def _run_again(self, tripped: Tripped) -> tuple[FoundOrigin | None, str | None, Replay]:
        """Return where the step turned non-finite, and on which replicas, each of which runs its share again."""
        given, optimizer = tripped.given, self._optimizer()
        key = (id(given.function), id(optimizer))
        if key not in self._replays:
            self._replays[key] = Replay(self._model, optimizer, given.function)
        replay = self._replays[key]
        bad: dict[int, FoundOrigin] = {}
        parts = shares((given.args, given.kwargs))
        with weights_set(self._model, tripped.weights):
            for replica, (args, kwargs) in enumerate(parts):
                if len(parts) > 1 and _is_empty(args):  # of a last batch that is smaller
                    continue
                reading = replay.run(*args, loss_scale=tripped.loss_scale, **kwargs)
                found = find_origin(replay.values(reading))
                if found is not None:
                    bad[replica] = found
        first = next(iter(bad.values()), None)
        return first, None if first is None or len(parts) == 1 else _of_replicas(list(bad), len(parts)), replay

    def _keep(self, tripped: Tripped) -> str | None:
        """Write the step's batch and weights; return the file's name within the run directory."""
        given = tripped.given
        try:
            args, kwargs = whole_batch((given.args, given.kwargs))
            groups = {
                "data": as_arrays(args if given.function is not None else args[0]),
                "weights": tripped.weights,
                "state": {"loss_scale": tripped.loss_scale, "is_custom_loop": given.function is not None},
            }
            if kwargs:
                groups["keywords"] = as_arrays(kwargs)
            if self._writer is None:
                arrays = tf.nest.flatten(groups)
                size = sum(int(array.nbytes) for array in arrays if isinstance(array, np.ndarray))
                self._writer = KeptBatchWriter(self._directory, _MOST_KEPT * (size + 2**20))
            return str(self._writer.keep(given.step, **groups).relative_to(self._directory))
        except RunDirectoryError as error:
            self._tell(f"the step that turned non-finite is not kept: {error}")
            return None


def _is_empty(args: Any) -> bool:
    """Tell whether a replica was given no example."""
    shapes = [leaf.shape for leaf in tf.nest.flatten(args) if tf.is_tensor(leaf)]
    return bool(shapes) and all(len(shape) > 0 and shape[0] == 0 for shape in shapes)


def _of_replicas(bad: list[int], total: int) -> str:
    """Say on which replicas a step was not finite."""
    if len(bad) == total:
        return f"run again replica by replica, it was so on all {total}"
    names = f"replica {bad[0]} alone" if len(bad) == 1 else f"replicas {', '.join(map(str, bad))}"
    return f"run again replica by replica, it was so on {names}, of {total} (numbered from 0)"


def as_arrays(tree: Any) -> Any:
    """Return a structure of tensors as one of NumPy arrays."""
    return tf.nest.map_structure(lambda leaf: np.asarray(leaf.numpy()) if tf.is_tensor(leaf) else leaf, tree)
