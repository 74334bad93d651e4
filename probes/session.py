"""The context manager around a training loop: `precscope.profile`."""

from __future__ import annotations

import re
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from precscope.errors import SessionError
from precscope.options import Options, resolve_options
from precscope.probes.custom_loop import InstrumentedStep
from precscope.probes.environment import describe_run
from precscope.probes.health import Health
from precscope.probes.internals.distribution import mean_loss, replicas_of
from precscope.probes.internals.layer_calls import set_instance_attribute
from precscope.probes.internals.layer_tree import walk_layers
from precscope.probes.internals.optimizers import leading_optimizer, optimizers_of
from precscope.probes.keeper import Keeper
from precscope.probes.legacy import add_legacy_note
from precscope.probes.lint_checks.optimizer import check_loss_scaling
from precscope.probes.live_process import LiveProcess
from precscope.probes.loss_scale_poll import LossScalePoll
from precscope.probes.measurements import Measurements
from precscope.probes.model_records import ModelRecords
from precscope.probes.optimizer_taps import OptimizerTaps
from precscope.probes.origin_watch import OriginWatch
from precscope.probes.replica_notices import replica_notices
from precscope.probes.sampling_loop import SampledStep, SamplingLoop
from precscope.probes.session_checks import NOTHING_FIRES, check_model, how_it_ended
from precscope.probes.session_extras import SessionExtras, session_extras
from precscope.probes.taps import LayerTaps
from precscope.probes.train_function import ChoosingTrainFunction
from precscope.sampling import Sampler
from precscope.writer import RunWriter

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from precscope.probes.recorder import Reading, Recorder
    from precscope.records import RunStatus
    from precscope.verification import Verification

__all__ = ["Session", "is_profiled", "profile"]

_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;]*m")  # Keras prints its errors in bold
_profiled_models: weakref.WeakKeyDictionary[Any, Session] = weakref.WeakKeyDictionary()


def is_profiled(model: Any) -> bool:
    """Tell whether a session that is open watches `model`."""
    return model in _profiled_models


def profile(
    model: Any,
    run_dir: str | os.PathLike[str],
    *,
    options: Options | Mapping[str, Any] | str | Path | None = None,
    optimizer: Any = None,
    overwrite: bool = False,
    **keywords: Any,
) -> Session:
    """Return a session that records the training of `model` inside a `with` block into the directory `run_dir`.

    Args:
        model: A Keras 3 model on the TensorFlow backend, compiled; or any model together with `optimizer`.
        run_dir: A new directory for the run.
        options: A YAML file, a mapping or `precscope.Options`.
        optimizer: The optimizer of a custom training loop, or a list of them: loss, loss scale and applied steps are
            those of the first. By default the one that the model was compiled with, and others that it holds.
        overwrite: Replace a run that is already there.
        **keywords: Single options, see `precscope.Options`; they win over `options`.

    Raises:
        SessionError: The backend is not TensorFlow, or the model is not compiled.
        OptionsError: An option has an unknown name or a wrong value.

    Entering the block raises SessionError where the model is being profiled already, and RunDirectoryError where the
    run directory cannot be created.
    """
    return Session(model, run_dir, resolve_options(options, **keywords), optimizer, overwrite)


class Session:
    """A profiled training; use `precscope.profile`.

    Attributes:
        path: The run directory.
        options: What is recorded and when.
    """

    def __init__(
        self, model: Any, run_dir: str | os.PathLike[str], options: Options, optimizer: Any, overwrite: bool
    ) -> None:
        check_model(model, optimizer)
        self.path = run_dir
        self.options = options
        self._model = model
        self._given_optimizers = (
            optimizer if isinstance(optimizer, (list, tuple)) else [optimizer] * (optimizer is not None)
        )
        self._optimizers: Sequence[Any] = ()
        self._overwrite = overwrite
        self._state: Literal["new", "open", "closed"] = "new"
        self._undo: Callable[[], None] | None = None
        # Custom loops: steps that were instrumented, those called since the last `step`, and a sample not yet written.
        self._instrumented: list[InstrumentedStep] = []
        self._called: set[int] = set()
        self._pending: tuple[SampledStep, Reading] | None = None
        self._optimizer_taps: tuple[OptimizerTaps, ...] = ()
        self._live: LiveProcess | None = None
        #: Closes this session where another begins on its model; None where that one is refused.
        self.give_way: Callable[[], None] | None = None

    @property
    def _optimizer(self) -> Any:
        """The optimizer that leads: the model's own, or the first that is used where that one is not."""
        if self._given_optimizers:
            return self._given_optimizers[0]
        if not self._optimizers or self._optimizers[0] is not self._model.optimizer:
            self._optimizers = optimizers_of(self._model)
        return leading_optimizer(self._optimizers)

    def __enter__(self) -> Session:
        """Begin to watch the model."""
        if self._state != "new":
            raise SessionError(f"This session is {self._state}; a session is used once. Call precscope.profile again.")
        other = _profiled_models.get(self._model)
        if other is not None and other.give_way is not None:
            other.give_way()
        if self._model in _profiled_models:
            raise SessionError(
                f"Model {self._model.name!r} is being profiled by another session. Close that one first: sessions on "
                "one model cannot be nested."
            )
        start_ns = time.perf_counter_ns()
        self._replicas = replicas_of(self._model.distribute_strategy)
        self._writer = writer = RunWriter.create(
            self.path,
            describe_run(Path(self.path).name, self._model, self._optimizer, self.options, self._replicas),
            overwrite=self._overwrite,
            worker=self._replicas.worker,
            most_bytes=round(self.options.run_size_mib * 2**20) or None,
        )
        self.path = writer.path
        sampler = Sampler(self.options, meets_others=self._replicas.workers > 1)
        self._loop = SamplingLoop(sampler, self._wait_for_device, self._keep, self._probe_failed)
        self._records = ModelRecords(self._model, self.options)
        self._keeper = Keeper(writer, self._records, self._stop_recording)
        self._health = Health(self._model, lambda: self._optimizer)
        self._loss_scale = LossScalePoll(lambda: self._optimizer, self._loop, self._keeper, self._health.complaint)
        self._origins = OriginWatch(self.options, self._loop, self._keeper, self._records)
        self._loss_scale.noticed = self._origins.noticed
        self._extras = SessionExtras()
        if not self._replicas.are_several:
            watched = (self._model, lambda: self._optimizer, self.options, self._loop, self._keeper)
            self._extras = session_extras(*watched, self._origins, writer.path, self._tell)
        if self._extras.tripwire is not None:
            self._loss_scale.before_look = self._extras.tripwire.look
        self._measurements = Measurements(self._model, lambda: self._optimizer, self.options, self._loop, self._keeper)
        self._keeper.keep_layers()
        self._keeper.keep_replicas(self._replicas)
        for level, message in replica_notices(self._replicas, self.options):
            self._tell(level, message)
        self._undo = set_instance_attribute(self._model, "make_train_function", self._make_function)
        _profiled_models[self._model] = self
        self._state = "open"
        self._loss_scale.look()
        self._measurements.start()
        if self.options.live and self._replicas.worker == 0:
            self._live = LiveProcess.start(writer.path, lambda message: self._tell("info", message))
        self._loop.costs.add("build", time.perf_counter_ns() - start_ns)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the model as it was and note how the training ended; an exception goes on."""
        self._restore_model()
        self._state = "closed"
        if not self._writer.is_mine:  # a forked process leaves by the same door, and the session is not its own
            return
        status, reason = how_it_ended(error)
        try:
            self._flush()
            if self._extras.tripwire is not None:
                self._extras.tripwire.look()
            self._loss_scale.look()
            self._tell_of_silence(status)
            if self._extras.reference is not None and status == "finished":
                self._extras.reference.at_end()
        except Exception as failure:  # a device that is gone, say: the training's own exception must go on
            self._tell("warning", f"how the run ended could not be recorded: {type(failure).__name__}: {failure}")
        finally:
            self._measurements.close()
            self._keeper.close(status, reason, self._loop.costs.records())
            if self._live is not None:
                self._live.stop()
        if error is not None:
            add_legacy_note(error)

    def _restore_model(self) -> None:
        if self._undo is not None:
            self._undo()
        if isinstance(self._model.train_function, ChoosingTrainFunction):
            self._model.train_function = self._model.train_function.plain
        _profiled_models.pop(self._model, None)

    # What users call inside the block.

    def instrument(self, train_step: Callable[..., Any]) -> Callable[..., Any]:
        """Return `train_step` with probes on sampled steps, for a custom loop.

        Args:
            train_step: A tf.function, or a plain function that runs eagerly. It makes one train step.

        Raises:
            SessionError: The session is not open, or `train_step` cannot be called.
        """
        self._require_open("instrument")
        if not callable(train_step):
            raise SessionError(f"session.instrument expects a train step that can be called, received {train_step!r}.")
        wanted = (self._extras.handout, self._extras.tripwire)
        if not self._replicas.devices:  # a strategy under which nothing is recorded
            return train_step
        hooks = (self._make_taps, self._is_built, self._advance)
        step = InstrumentedStep(train_step, self._loop, *hooks, *wanted, replicas=self._replicas)
        self._instrumented.append(step)
        return step

    def step(self, loss: Any = None) -> None:
        """Tell that a train step of a custom loop is over.

        Args:
            loss: The step's unscaled loss, anything that `float` takes. It is read on sampled steps only, and not
                needed where the train step calls `optimizer.scale_loss`.

        Raises:
            SessionError: The session is not open.
        """
        self._require_open("step")
        self._flush(loss)
        self._health.last_loss = loss
        if not self._instrumented and self._loop.is_sample_due:
            self._tell_nothing_fires()
        self._called.clear()
        self._loop.count()
        if not self._instrumented:  # an instrumented step polls by itself
            self._loop.poll_when_due()

    def pause(self) -> None:
        """Sample nothing until `resume`."""
        self._require_open("pause")
        self._loop.pause(True)

    def resume(self) -> None:
        """Sample again."""
        self._require_open("resume")
        self._loop.pause(False)

    def verify(self, **options: Any) -> Verification:
        """Prove by replay which layers have to stay in float32, with the model as it is now; inside or after the block.

        Batches that were kept (`keep_batches_mib`) go forward and backward without an update, in float32 and under the
        policies that are tried; the smallest set of layers that agrees with float32 is found and priced. The outcome
        is written into the run directory, with `policy.yaml`.

        Args:
            **options: `most_batches` to replay (3), `most_tests` sets of layers to try (60), a `dataset` to take
                batches from where none were kept, a `criterion` (`precscope.replay.Criterion`), and `report`, which is
                called before each set with the number of sets tried and of those left at most.

        Raises:
            SessionError: The session has not begun.
            PrecScopeError: No batches were kept, or there is nothing to compare them with.
        """
        if self._state == "new":
            raise SessionError("session.verify was called before the session began: it tests what a training recorded.")
        from precscope.probes.verify_session import progress_line, verify_and_write

        if self._state == "open":
            self._flush()
        step = self._instrumented[-1].plain if self._instrumented else None
        optimizer = next(iter(self._given_optimizers), None)
        try:
            with progress_line() as report:
                given = {"report": report, "step": step, "optimizer": optimizer} | options
                return verify_and_write(self._model, self.path, **given)
        finally:
            if self._state == "open":
                self._loop.open_window()  # this was no train step

    def _require_open(self, method: str) -> None:
        if self._state != "open":
            raise SessionError(
                f"session.{method} was called on a session that is {self._state}. Call it inside "
                "`with precscope.profile(...) as session:`."
            )

    # What the training calls.

    def _make_function(self, force: bool = False) -> Any:
        """Stand in for `model.make_train_function`: let Keras build, and choose between that and a probed function."""
        model = self._model
        current = model.train_function
        if isinstance(current, ChoosingTrainFunction):
            model.train_function = current.plain
        type(model).make_train_function(model, force=force)
        plain = model.train_function
        if not isinstance(current, ChoosingTrainFunction) or current.plain is not plain:
            self._loss_scale.count_anew()
            wanted = (self._extras.handout, self._extras.tripwire)
            current = ChoosingTrainFunction(model, plain, self._loop, self._make_taps, *wanted, self._replicas)
        model.train_function = current if self._replicas.devices else plain
        return model.train_function

    def _make_taps(self, recorder: Recorder) -> tuple[LayerTaps, *tuple[OptimizerTaps, ...]]:
        self._records.refresh()  # layers and variables that were built since
        names = self._records.variable_name if self.options.weights or self.options.gradients else lambda variable: None
        leading = self._optimizer
        self._optimizer_taps = tuple(
            OptimizerTaps(
                optimizer, names, recorder, self.options.weights, self.options.gradients, optimizer is leading
            )
            for optimizer in self._given_optimizers or optimizers_of(self._model)
        )
        for finding in check_loss_scaling(dict(walk_layers(self._model)), self._optimizer):
            if finding.severity == "error":
                self._tell("warning", f"{finding.sentence} {finding.advice}")
        layer_taps = LayerTaps(self._records.plans, recorder, self._records.selects_between)
        self._records.between.append(layer_taps.between)
        return layer_taps, *self._optimizer_taps

    def _is_built(self) -> bool:
        return bool(self._model.built and self._optimizer.built)

    def _advance(self, step: InstrumentedStep) -> None:
        """Count a step where the loop does not call `session.step`: the same function begins again."""
        if id(step) in self._called:
            self._flush()
            self._called.clear()
            self._loop.count()
        self._called.add(id(step))

    def _keep(self, sampled: SampledStep) -> None:
        if sampled.reading is None or not any(t.key.kind == "activation" for t in sampled.reading.tensors):
            self._tell_nothing_fires()
        for misuse in (words for taps in self._optimizer_taps for words in taps.misuse.found()):
            self._tell("warning", misuse)
        if sampled.reading is None:
            return
        if sampled.reading.updates_before is None:  # the optimizer is not called, or in a branch: no update is no skip
            self._loss_scale.counts_skips = False
        self._extras.keep_batch(self._model, sampled.step)
        if self._instrumented and sampled.reading.loss is None:
            self._pending = (sampled, sampled.reading)  # `session.step` may tell the loss
            return
        self._keep_sample(sampled, sampled.reading)

    def _flush(self, loss: Any = None) -> None:
        if self._pending is not None:
            (sampled, reading), self._pending = self._pending, None
            self._keep_sample(sampled, reading, None if loss is None else mean_loss(loss))

    def _keep_sample(self, sampled: SampledStep, reading: Reading, loss: float | None = None) -> None:
        self._keeper.keep_sample(sampled, reading, self._loop.costs.records(), loss)
        self._origins.sampled(sampled, reading if loss is None else replace(reading, loss=loss))
        self._loss_scale.look()

    def _probe_failed(self, error: Exception) -> None:
        words = " ".join(_TERMINAL_CODES.sub("", str(error)).split())
        self._tell(
            "error",
            f"the probed step failed and is switched off: {type(error).__name__}: {words[:500]} "
            "The training goes on without probes; the batch at hand may have been passed over.",
        )

    def _tell_nothing_fires(self) -> None:
        if not self.options.activations:
            return
        self._tell("warning", NOTHING_FIRES)
        self._keeper.keep_layers_sampled()
        self._loop.switch_off()

    def _tell_of_silence(self, status: RunStatus) -> None:
        if self._keeper.samples == 0 and status == "finished":
            seen = self._loop.steps_seen
            self._tell("warning", f"nothing was recorded: {seen} train steps were seen, and none of them was sampled.")

    def _tell(self, level: Literal["info", "warning", "error"], message: str) -> None:
        self._keeper.tell(level, "probes", message, self._loop.steps_seen or None)

    # The optimizer, looked at now and then.

    def _wait_for_device(self) -> None:
        """Read a number that the last step wrote: it is there when the step is done."""
        self._loss_scale.updates()

    def _stop_recording(self) -> None:
        """Nothing can be written any more."""
        self._loop.switch_off()
        self._loss_scale.switch_off()
