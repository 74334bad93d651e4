"""Runs a train step that a run directory keeps, with a model that the user's function builds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow as tf

from precscope.error_text import where_it_failed
from precscope.errors import PrecScopeError
from precscope.kept_batches import TypedArray, kept_batches
from precscope.origin import FoundOrigin, all_frames, find_origin
from precscope.probes.internals.layer_tree import state_variables
from precscope.probes.model_entry import BUILT_FOR_REPLAY, build_training
from precscope.probes.origin_watch import origin_record
from precscope.probes.replay import Replay, set_weights
from precscope.reader import open_run
from precscope.replayed_step import ReplayedStep

if TYPE_CHECKING:
    import os

    from precscope.kept_batches import KeptBatch
    from precscope.origin_records import Frame

__all__ = ["replay_kept"]


def replay_kept(run_dir: str | os.PathLike[str], step: int | None, entry: str) -> ReplayedStep:
    """Run the kept `step` (the first kept one by default) with the model that the user's function `entry` builds.

    Raises:
        RunDirectoryError: `run_dir` is no run, or the kept file is damaged.
        EntryPointError: There is no such function.
        PrecScopeError: No such step is kept, the function raised or returned something else, or the step does not fit
            the model.
    """
    run = open_run(run_dir)
    batch = _chosen(kept_batches(run.path), step, str(run.path))
    groups = batch.groups()
    state = batch.load("state") if "state" in groups else {}
    built = build_training(entry)
    model, optimizer, function = built.model, built.optimizer, built.step
    args = batch.load_typed("data")
    args = args if state.get("is_custom_loop") else (args,)
    args, keywords = (_tensors(tree) for tree in (args, batch.load_typed("keywords") if "keywords" in groups else {}))
    if state.get("is_custom_loop") and function is None:
        raise PrecScopeError(
            f"Step {batch.step:,} is a custom training loop's, and {entry} gave no step. It must return "
            f"{BUILT_FOR_REPLAY}."
        )
    notes = _prepare(model, optimizer, args, batch.load("weights") if "weights" in groups else None, entry)
    replay = Replay(model, optimizer, function if state.get("is_custom_loop") else None)
    scale = state.get("loss_scale")
    try:
        reading = replay.run(*args, loss_scale=scale, **keywords)
    except Exception as error:  # the user's step
        raise PrecScopeError(f"Step {batch.step:,} cannot be run with {entry}: {where_it_failed(error)}") from error
    values = replay.values(reading)
    found, frames = find_origin(values), all_frames(values)
    return ReplayedStep(
        run=str(run.path),
        step=batch.step,
        loss=reading.loss,
        loss_scale=reading.loss_scale if scale is None else scale,
        origin=None
        if found is None
        else origin_record(found, batch.step, replay.records, loss_scale=scale, noticed_by="replay"),
        frames=frames,
        origin_position=_position(frames, found),
        notes=notes,
    )


def _chosen(kept: tuple[KeptBatch, ...], step: int | None, path: str) -> KeptBatch:
    if not kept:
        raise PrecScopeError(
            f"The run '{path}' keeps no train step. Record it with precscope.profile(..., tripwire=True), which keeps "
            "the first step that turns non-finite."
        )
    chosen = next((batch for batch in kept if step in (None, batch.step)), None)
    if chosen is None:
        steps = ", ".join(f"{batch.step}" for batch in kept[:20])
        raise PrecScopeError(f"The run '{path}' does not keep train step {step}. It keeps: {steps}.")
    return chosen


def _prepare(model: Any, optimizer: Any, args: tuple[Any, ...], weights: Any, entry: str) -> tuple[str, ...]:
    """Build what is not built, and give the model the kept weights; return what the reader should know."""
    if not model.built:
        x = args[0][0] if isinstance(args[0], tuple) else args[0]
        model(x)
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    if weights is None:
        return (f"No weights are kept with this step: these are the ones that {entry} gave the model.",)
    misfits = set_weights(model, weights)
    if not misfits:
        return ()
    # Names that Keras numbers by itself differ from process to process; order and shapes tell as much.
    variables = [variable for _, variable in state_variables(model)]
    values = list(weights.values())
    if [tuple(v.shape) for v in variables] != [value.shape for value in values]:
        raise PrecScopeError(
            f"The kept weights do not fit the model that {entry} builds: it lacks {misfits[0]!r}, or has it in another "
            f"shape ({len(misfits)} of {len(values)} do not fit). Build it as it was built for the training."
        )
    for variable, value in zip(variables, values, strict=True):
        variable.value.assign(tf.cast(value, variable.value.dtype))
    return ("Weights were matched by their order, for the names of the model's variables differ.",)


def _tensors(tree: Any) -> Any:
    """Return kept arrays as tensors of the dtype that they had."""

    def tensor(leaf: Any) -> Any:
        return tf.constant(leaf.array, leaf.dtype) if isinstance(leaf, TypedArray) else leaf

    return tf.nest.map_structure(tensor, tree)


def _position(frames: tuple[Frame, ...], found: FoundOrigin | None) -> int | None:
    if found is None or not found.frames or found.cause in ("weights", "data"):
        return None
    last = found.frames[-1]
    return next((i for i, f in enumerate(frames) if (f.layer, f.direction) == (last.layer, last.direction)), None)
