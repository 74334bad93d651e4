"""What an open session is made of, and how its parts are put together, started and ended."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from precscope.error_text import failure_in_a_line
from precscope.probes.colliding_ids import ids_that_collide
from precscope.probes.environment import describe_run
from precscope.probes.health import Health
from precscope.probes.internals.distribution import replicas_of
from precscope.probes.keeper import Keeper
from precscope.probes.live_process import LiveProcess
from precscope.probes.loss_scale_poll import LossScalePoll
from precscope.probes.measurements import Measurements
from precscope.probes.model_records import ModelRecords
from precscope.probes.model_taps import ModelTaps
from precscope.probes.origin_watch import OriginWatch
from precscope.probes.probed_step import StepProbes
from precscope.probes.replica_notices import replica_notices
from precscope.probes.sampled_steps import SampledSteps
from precscope.probes.sampling_loop import SampledStep, SamplingLoop
from precscope.probes.session_checks import why_nothing_was_recorded
from precscope.probes.session_extras import SessionExtras, session_extras
from precscope.probes.traced_lint import TracedLint
from precscope.sampling import Sampler
from precscope.writer import RunWriter

if TYPE_CHECKING:
    import os

    from precscope.options import Options
    from precscope.probes.model_optimizers import ModelOptimizers
    from precscope.records import RunStatus

__all__ = ["SessionParts"]


class SessionParts:
    """Makes the run directory and everything that writes into it.

    Args:
        model: The model that is trained.
        optimizers: Its optimizers.
        options: What is recorded and when.
        run_dir: The run directory.
        overwrite: Whether to replace a run that is already there.

    Attributes:
        writer: Writes the run.
        replicas: The replicas that train.
        loop: Counts the steps, and samples those that are due.
        probes: What is put on the train steps.
        samples: Takes each sampled step.
        health: Tells whether loss and weights are finite.
        loss_scale: Looks at the loss scale between samples.
        extras: What is kept beside the samples, where it was asked for.

    Raises:
        RunDirectoryError: The run directory cannot be created.
    """

    def __init__(
        self,
        model: Any,
        optimizers: ModelOptimizers,
        options: Options,
        run_dir: str | os.PathLike[str],
        overwrite: bool,
    ) -> None:
        self._model = model
        self._options = options
        self.replicas = replicas = replicas_of(model.distribute_strategy)
        self.writer = writer = RunWriter.create(
            run_dir,
            describe_run(Path(run_dir).name, model, optimizers.leading(), options, replicas),
            overwrite=overwrite,
            worker=replicas.worker,
            most_bytes=round(options.run_size_mib * 2**20) or None,
        )
        sampler = Sampler(options, meets_others=replicas.workers > 1)
        self.loop = loop = SamplingLoop(sampler, self._wait_for_device, self._keep, self._probe_failed)
        records = ModelRecords(model, options)
        self._keeper = keeper = Keeper(writer, records, self._stop_recording)
        self.health = Health(model, optimizers.leading)
        self.loss_scale = LossScalePoll(optimizers.leading, loop, keeper, self.health.complaint)
        origins = OriginWatch(options, loop, keeper, records)
        self.loss_scale.noticed = origins.noticed
        self.extras = SessionExtras()
        if replicas.batch_is_here:
            watched = (model, optimizers.leading, options, loop, keeper)
            self.extras = session_extras(*watched, origins, writer.path, self.tell)
        if self.extras.tripwire is not None:
            self.loss_scale.before_look = self.extras.tripwire.look
        lint = TracedLint(keeper, self.tell)
        taps = ModelTaps(model, optimizers, options, records, lint, self.tell)
        self.probes = StepProbes(taps.make, self.extras.handout, self.extras.tripwire, replicas)
        written_by = (keeper, self.loss_scale, origins, self.extras, self.tell)
        self.samples = SampledSteps(model, options.activations, loop, taps, *written_by)
        self._measurements = Measurements(model, optimizers.leading, options, loop, keeper)
        self._live: LiveProcess | None = None

    def start(self) -> None:
        """Write down what is known before the first step, and begin to look and to measure."""
        self._keeper.keep_layers()
        self._keeper.keep_replicas(self.replicas)
        for level, message in replica_notices(self.replicas, self._options):
            self.tell(level, message)
        self.loss_scale.look()
        try:
            self.extras.begin(self._model)
        except Exception as error:  # what only helps a later replay must not stop a training
            self.tell("warning", f"the weights of the start could not be noted: {failure_in_a_line(error)}")
        self._measurements.start()
        if self._options.live and self.replicas.worker == 0:
            self._live = LiveProcess.start(self.writer.path, lambda message: self.tell("info", message))

    def end(self, status: RunStatus, reason: str | None) -> None:
        """Write down how the training ended, and end everything."""
        try:
            self.samples.flush()
            if self.extras.tripwire is not None:
                self.extras.tripwire.look()
            self.loss_scale.look()
            if self._keeper.samples == 0 and status == "finished":
                self.tell("warning", why_nothing_was_recorded(self.loop.steps_seen, self._options.start))
            if self._keeper.samples == 0 and status == "failed":
                self._look_without_a_sample()
            if self.extras.reference is not None and status == "finished":
                self.extras.reference.at_end()
        except Exception as failure:  # a device that is gone, say: the training's own exception must go on
            self.tell("warning", f"how the run ended could not be recorded: {failure_in_a_line(failure)}")
        finally:
            self._measurements.close()
            self._keeper.close(status, reason, self.loop.costs.records())
            if self._live is not None:
                self._live.stop()

    def probes_of_loops(self) -> StepProbes:
        """Return what is put on the step of a custom loop; under a strategy with several replicas no tripwire is."""
        if self.probes.tripwire is None or not self.replicas.are_several:
            return self.probes
        self.tell(
            "warning",
            "tripwire: not for the step of a custom loop under a strategy. It runs all replicas at once, and only "
            "one replica's step can be run again by itself: `fit` hands it over. Everything else is recorded.",
        )
        return replace(self.probes, tripwire=None)

    def tell(self, level: Literal["info", "warning", "error"], message: str) -> None:
        """Record a notice and, from "warning" up, tell the user: each message once."""
        self._keeper.tell(level, "probes", message, self.loop.steps_seen or None)

    def _look_without_a_sample(self) -> None:
        """Tell of what may have ended the training in its first step, before there were values to look at."""
        with suppress(Exception):  # the model may not be able to be called: that is told already
            for message in ids_that_collide(self._model):
                self.tell("warning", message)

    # What the loop and the keeper call; the parts that answer are made after them.

    def _wait_for_device(self) -> None:
        """Read a number that the last step wrote: it is there when the step is done."""
        self.loss_scale.updates()

    def _keep(self, sampled: SampledStep) -> None:
        self.samples.keep(sampled)

    def _probe_failed(self, error: Exception, was_done: bool) -> None:
        lost = "what this step recorded is lost" if was_done else "the batch at hand may have been passed over"
        self.tell(
            "error",
            f"the probed step failed and is switched off: {failure_in_a_line(error, 500)}. The training goes on "
            f"without probes; {lost}.",
        )

    def _stop_recording(self) -> None:
        """Nothing can be written any more."""
        self.loop.switch_off()
        self.loss_scale.switch_off()
