"""The batches to replay: those that the run kept, or the first of a dataset."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from precscope.errors import PrecScopeError
from precscope.kept_batches import TypedArray
from precscope.probes.batch_slices import examples_in, first_examples
from precscope.probes.internals.layer_tree import state_variables
from precscope.probes.replayer import ReplayBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.kept_batches import KeptBatch
    from precscope.reader import Run

__all__ = ["ReplayData", "batches_of_run"]


@dataclass(frozen=True)
class ReplayData:
    """Batches, and whose weights they are replayed with, in words."""

    batches: tuple[ReplayBatch, ...]
    weights: str

    def first_part(self, share: float) -> ReplayData | None:
        """Return the first examples of each batch, that share of them; None where that would be less than one."""
        if share == 1:
            return self
        parts = []
        for batch in self.batches:
            size = examples_in((batch.args, batch.kwargs))
            if size is None or int(size * share) < 1:
                return None
            args, kwargs = first_examples((batch.args, dict(batch.kwargs)), size, int(size * share))
            parts.append(replace(batch, args=args, kwargs=kwargs))
        return ReplayData(
            tuple(parts), f"{self.weights}, on the first {share:.3g} of their examples for want of memory"
        )


def batches_of_run(
    run: Run, model: Any, dataset: Any = None, most: int = 3, of_custom_loop: bool = False
) -> ReplayData:
    """Return up to `most` batches that the run kept, or where it kept none, the first of `dataset`.

    Those of a custom loop are the arguments of its step; of `fit`, the one argument of Keras' train step.

    Raises:
        PrecScopeError: There are none, or the weights that were kept with them are not those of this model, or they are
            of a custom loop whose step is not at hand.
        RunDirectoryError: A kept batch cannot be read.
    """
    kept = run.kept_batches
    if kept:
        chosen = _chosen(run, most)
        batches = tuple(_from_kept(batch, model, of_custom_loop) for batch in chosen)
        with_weights = all(batch.weights is not None for batch in batches)
        return ReplayData(batches, _whose_weights(chosen) if with_weights else "as the model has them now")
    if dataset is None:
        raise PrecScopeError(
            f"The run in '{run.path}' kept no batches, so nothing can be replayed. Record it again with "
            "precscope.profile(..., keep_batches_mib=64), or let FUNCTION return (model, dataset)."
        )
    taken = [element if isinstance(element, tuple) else (element,) for element in dataset.take(most)]
    if not taken:
        raise PrecScopeError("The dataset that was given has no batches.")
    batches = tuple(
        ReplayBatch(number, element if of_custom_loop else (element,)) for number, element in enumerate(taken)
    )
    return ReplayData(batches, "as the model has them now")


def _whose_weights(batches: Sequence[KeptBatch]) -> str:
    lost = [batch.step for batch in batches if _state(batch).get("weights_from_before")]
    text = "as kept with each batch"
    return f"{text}, of step {', '.join(f'{step:,}' for step in lost)} from before they were lost" if lost else text


def _state(batch: KeptBatch) -> dict[str, Any]:
    return batch.load("state") if "state" in batch.groups() else {}


def _chosen(run: Run, most: int) -> list[KeptBatch]:
    """Return batches of skipped steps, the first and the latest of them, and others spread over the training."""
    skipped = {sample.step for sample in run.samples if sample.applied is False}
    bad = [batch for batch in run.kept_batches if batch.step in skipped]
    other = [batch for batch in run.kept_batches if batch.step not in skipped]
    of_bad = min(len(bad), max(most - 1, 1) if other else most)
    chosen = _spread(bad, of_bad) + _spread(other, most - of_bad)
    return sorted(chosen, key=lambda batch: batch.step)


def _spread(batches: list[KeptBatch], most: int) -> list[KeptBatch]:
    """Return at most `most` of them, evenly spread, the last one among them."""
    if most <= 0 or not batches:
        return []
    last = len(batches) - 1
    places = {round(last - number * last / max(most - 1, 1)) for number in range(most)}
    return [batches[place] for place in sorted(places)]


def _from_kept(kept: KeptBatch, model: Any, of_custom_loop: bool) -> ReplayBatch:
    groups = kept.groups()
    if _state(kept).get("is_custom_loop", of_custom_loop) != of_custom_loop:
        raise PrecScopeError(_other_step(kept.step, of_custom_loop))
    data = _tensors(kept.load_typed("data"))
    keywords = _tensors(kept.load_typed("keywords")) if "keywords" in groups else None
    weights = _weights(kept, model) if "weights" in groups else None
    return ReplayBatch(kept.step, tuple(data) if of_custom_loop else (data,), keywords or {}, weights)


def _other_step(step: int, of_custom_loop: bool) -> str:
    if of_custom_loop:
        return (
            f"The batch of step {step:,} is one of fit, and the step of a custom loop was given to replay it with. "
            "Give the compiled model alone."
        )
    return (
        f"The batch of step {step:,} holds the arguments of a custom loop's step, and no such step was given to replay "
        "it with. Let FUNCTION return (model, optimizer, train_step), or call session.verify() after the loop: the "
        "session knows its step."
    )


def _weights(kept: KeptBatch, model: Any) -> list[Any]:
    """Return the weights that were kept with a batch in the order of the model's.

    They have names, in which Keras' numbers may be others when a model is built again; then their order counts.
    """
    weights: dict[str, Any] = _tensors(kept.load_typed("weights"))
    own = state_variables(model)
    names = [name for name, _ in own]
    values = [weights[name] for name in names] if set(names) == set(weights) else list(weights.values())
    if [tuple(value.shape) for value in values] != [tuple(variable.shape) for _, variable in own]:
        raise PrecScopeError(
            f"The weights kept with step {kept.step} do not fit this model: {len(values)} of other shapes than its "
            f"{len(own)}. Verify with the model that the run was made with."
        )
    return values


def _tensors(tree: Any) -> Any:
    """Return the arrays of a structure as tensors of the dtype that they had."""
    if isinstance(tree, TypedArray):
        return tf.cast(tf.constant(tree.array), tree.dtype)
    if isinstance(tree, dict):
        return {name: _tensors(item) for name, item in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_tensors(item) for item in tree)
    return tree
