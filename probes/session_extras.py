"""What a session keeps beside its samples, where it was asked for: batches, reference steps, the tripwire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from precscope.error_text import failure_in_a_line
from precscope.probes.batch_handout import BatchHandout, BatchKeeping
from precscope.probes.internals.layer_tree import state_variables
from precscope.probes.reference_schedule import ReferenceSchedule
from precscope.probes.tripped_steps import TrippedSteps
from precscope.probes.tripwire import Tripwire

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from precscope.options import Options
    from precscope.probes.keeper import Keeper
    from precscope.probes.origin_watch import OriginWatch
    from precscope.probes.sampling_loop import SamplingLoop

__all__ = ["SessionExtras", "session_extras"]


@dataclass(frozen=True)
class SessionExtras:
    """The parts that were asked for; the others are None.

    Attributes:
        handout: Takes the batches of probed steps, where somebody wants them.
        batches: Keeps batches in the run directory (`keep_batches_mib`).
        reference: Takes reference steps in float32 (`reference`), which is so unless they are switched off.
        tripwire: Keeps what it takes to run a bad step again (`tripwire`).
    """

    handout: BatchHandout | None = None
    batches: BatchKeeping | None = None
    reference: ReferenceSchedule | None = None
    tripwire: Tripwire | None = None

    def begin(self, model: Any) -> None:
        """Note the weights that the training begins with, where batches are kept and the model is built."""
        if self.batches is not None and model.built:
            self.batches.begin(_values(model), _trained(model))

    def keep_batch(self, model: Any, step: int) -> None:
        """Keep the batch of the sampled train step `step`, with the model's state, where batches are kept."""
        if self.batches is not None and self.handout is not None:
            self.batches.keep(step, self.handout, lambda: _values(model), _trained(model))


def _values(model: Any) -> dict[str, Any]:
    return {name: variable.value for name, variable in state_variables(model)}


def _trained(model: Any) -> set[str]:
    return {name for name, variable in state_variables(model) if variable.trainable}


def session_extras(
    model: Any,
    optimizer: Callable[[], Any],
    options: Options,
    loop: SamplingLoop,
    keeper: Keeper,
    origins: OriginWatch,
    directory: Path,
    tell: Callable[[Literal["info", "warning", "error"], str], None],
) -> SessionExtras:
    """Return what `options` ask for, ready for a session that writes into `directory`.

    Under a strategy with several replicas reference steps are taken only where they are asked for, not by default.

    Args:
        model: The model that is trained.
        optimizer: Returns its optimizer.
        options: The session's options.
        loop: Counts the steps.
        keeper: Writes the run.
        origins: Is told of steps that the tripwire kept.
        directory: The run directory.
        tell: Tells the user, with a level.
    """
    several = int(model.distribute_strategy.num_replicas_in_sync) > 1
    wants_reference = options.reference not in ((False, "auto") if several else (False,))
    handout = BatchHandout() if wants_reference or options.keep_batches_mib else None
    batches = reference = tripwire = None
    if options.keep_batches_mib:
        batches = BatchKeeping(directory, options.keep_batches_mib, lambda message: tell("warning", message))
    if wants_reference and handout is not None:
        reference = ReferenceSchedule(model, optimizer, options, loop, keeper, handout)
    if options.tripwire:
        steps = TrippedSteps(model, optimizer, loop, origins, directory, lambda message: tell("warning", message))
        tripwire = Tripwire(
            model,
            optimizer,
            steps.handle,
            lambda error: tell("warning", f"the tripwire failed and is off: {failure_in_a_line(error, 500)}"),
            loop.costs,
        )
    return SessionExtras(handout, batches, reference, tripwire)
