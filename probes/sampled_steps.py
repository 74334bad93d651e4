"""What becomes of a sampled step: checked, completed with the loss that a custom loop tells, written, looked into."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from precscope.probes.internals.distribution import mean_loss

if TYPE_CHECKING:
    from collections.abc import Callable

    from precscope.probes.keeper import Keeper
    from precscope.probes.loss_scale_poll import LossScalePoll
    from precscope.probes.model_taps import ModelTaps
    from precscope.probes.origin_watch import OriginWatch
    from precscope.probes.reading import Reading
    from precscope.probes.sampling_loop import SampledStep, SamplingLoop
    from precscope.probes.session_extras import SessionExtras

__all__ = ["SampledSteps"]

_NOTHING_FIRES = (
    "no layer's output could be recorded in a sampled step. The train step does not run the model where probes can be "
    "put on it: it was not given to session.instrument, or it calls a tf.function of its own that was traced before. "
    "Give the tf.function itself to session.instrument, and call what that returns."
)


@dataclass
class SampledSteps:
    """Takes each sampled step of a session.

    Attributes:
        model: The model that is trained.
        wants_activations: Whether each sample is to hold layers' outputs.
        loop: Counts the steps.
        taps: Tell how the step that was traced uses the loss scale.
        keeper: Writes the run.
        loss_scale: Looks at the loss scale after each sample.
        origins: Looks in each sample for what is not finite.
        extras: Keep the step's batch where that was asked for.
        tell: Tells the user, with a level.
        may_be_told_loss: Whether the loss may come later, from `session.step`: a sample without one waits for it.
    """

    model: Any
    wants_activations: bool
    loop: SamplingLoop
    taps: ModelTaps
    keeper: Keeper
    loss_scale: LossScalePoll
    origins: OriginWatch
    extras: SessionExtras
    tell: Callable[[Literal["info", "warning", "error"], str], None]
    may_be_told_loss: bool = False
    _waiting: tuple[SampledStep, Reading] | None = field(default=None, init=False)

    def keep(self, sampled: SampledStep) -> None:
        """Take a step that was just run."""
        if sampled.reading is None or not any(t.key.kind == "activation" for t in sampled.reading.tensors):
            self.nothing_fires()
        for misuse in self.taps.misuse():
            self.tell("warning", misuse)
        if sampled.reading is None:
            return
        if sampled.reading.updates_before is None:  # the optimizer is not called, or in a branch: no update is no skip
            self.loss_scale.counts_skips = False
        self.taps.lint.keep()
        self.extras.keep_batch(self.model, sampled.step)
        if self.may_be_told_loss and sampled.reading.loss is None:
            self._waiting = (sampled, sampled.reading)
        else:
            self._write(sampled, sampled.reading)

    def flush(self, loss: Any = None) -> None:
        """Write the step that waits for its loss, if there is one; None where it was not told."""
        if self._waiting is not None:
            (sampled, reading), self._waiting = self._waiting, None
            self._write(sampled, reading, None if loss is None else mean_loss(loss))

    def _write(self, sampled: SampledStep, reading: Reading, loss: float | None = None) -> None:
        self.keeper.keep_sample(sampled, reading, self.loop.costs.records(), loss)
        self.origins.sampled(sampled, reading if loss is None else replace(reading, loss=loss))
        self.loss_scale.look()

    def nothing_fires(self) -> None:
        """Say that a sample holds no layer although it should, and sample no more."""
        if not self.wants_activations:
            return
        self.tell("warning", _NOTHING_FIRES)
        self.keeper.keep_layers_sampled()
        self.loop.switch_off()
