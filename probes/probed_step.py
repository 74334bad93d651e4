"""A train step with taps in it, and what a train function or a custom loop needs to make and run one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from precscope.probes.internals.distribution import ONE_REPLICA
from precscope.probes.internals.tf_functions import clone_function, is_compiled_by_xla, is_tf_function
from precscope.probes.replicas import SharedTaps, recorder_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from precscope.probes.batch_handout import BatchHandout
    from precscope.probes.internals.distribution import Replicas
    from precscope.probes.optimizer_taps import OptimizerTaps
    from precscope.probes.recorder import Recorder
    from precscope.probes.taps import LayerTaps
    from precscope.probes.tripwire import Tripwire

__all__ = ["StepProbes", "probed_step"]


@dataclass(frozen=True)
class StepProbes:
    """What a session puts on the train steps that it watches.

    Attributes:
        make_taps: Plans and returns the taps, which write to the recorder; called when the first sample is due.
        handout: Takes the batches of sampled steps, where somebody wants them.
        tripwire: Keeps what it takes to run a bad step again, where that is asked for.
        replicas: Who runs the step.
    """

    make_taps: Callable[[Recorder], tuple[LayerTaps, *tuple[OptimizerTaps, ...]]]
    handout: BatchHandout | None = None
    tripwire: Tripwire | None = None
    replicas: Replicas = ONE_REPLICA

    def probed(
        self, step: Callable[..., Any], in_xla: bool = False, batch: int | None = None
    ) -> tuple[Recorder, Callable[..., Any]]:
        """Return `step` with taps, and the recorder that they write to.

        Args:
            step: A train step; where it is a tf.function, so is what is returned.
            in_xla: Whether XLA compiles the function around the step.
            batch: Usual batch size, where the step is traced without knowing it.
        """
        recorder = recorder_for(self.replicas, in_xla or is_compiled_by_xla(step))
        recorder.batch = batch
        return recorder, _probed_function(step, recorder, *self.make_taps(recorder))


def probed_step(
    step: Callable[..., Any], recorder: Recorder, layer_taps: LayerTaps, *optimizer_taps: OptimizerTaps
) -> Callable[..., Any]:
    """Return `step` with taps on layers and optimizers while it runs (or is traced)."""
    taps = SharedTaps(layer_taps.installed, *(taps.installed for taps in optimizer_taps))

    def probed(*args: Any, **kwargs: Any) -> Any:
        recorder.begin()
        try:
            with taps.installed():
                result = step(*layer_taps.tap_batch(args), **kwargs)
            recorder.end()
        finally:
            recorder.cancel()
        return result

    return probed


def _probed_function(
    step: Callable[..., Any], recorder: Recorder, layer_taps: LayerTaps, *optimizer_taps: OptimizerTaps
) -> Callable[..., Any]:
    """Return `probed_step` of a step that may be a tf.function: then as one of its own, for a trace that is kept."""
    if not is_tf_function(step):
        return probed_step(step, recorder, layer_taps, *optimizer_taps)

    def body(converted: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return probed_step(converted, recorder, layer_taps, *optimizer_taps)(*args, **kwargs)

    return clone_function(step, body)
