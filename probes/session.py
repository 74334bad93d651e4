"""The context manager around a training loop: `precscope.profile`."""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Any, Literal

from precscope.errors import SessionError
from precscope.options import Options, resolve_options
from precscope.probes.custom_loop import InstrumentedStep
from precscope.probes.internals.layer_calls import set_instance_attribute
from precscope.probes.legacy import add_legacy_note
from precscope.probes.model_optimizers import ModelOptimizers
from precscope.probes.session_checks import check_model, how_it_ended
from precscope.probes.session_parts import SessionParts
from precscope.probes.train_function import ChoosingTrainFunction

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from precscope.verification import Verification

__all__ = ["Session", "is_profiled", "open_sessions", "profile"]

_profiled_models: weakref.WeakKeyDictionary[Any, Session] = weakref.WeakKeyDictionary()


def is_profiled(model: Any) -> bool:
    """Tell whether a session that is open watches `model`."""
    return model in _profiled_models


def open_sessions() -> list[Session]:
    """Return the sessions that are open."""
    return list(_profiled_models.values())


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
        self._optimizers = ModelOptimizers(model, optimizer)
        self._overwrite = overwrite
        self._state: Literal["new", "open", "closed"] = "new"
        self._undo: Callable[[], None] | None = None
        # Custom loops: steps that were instrumented, and those called since the last `step`.
        self._instrumented: list[InstrumentedStep] = []
        self._called: set[int] = set()
        #: Closes this session where another begins on its model; None where that one is refused.
        self.give_way: Callable[[], None] | None = None

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
        self._parts = SessionParts(self._model, self._optimizers, self.options, self.path, self._overwrite)
        self.path = self._parts.writer.path
        self._parts.start()
        self._undo = set_instance_attribute(self._model, "make_train_function", self._make_function)
        _profiled_models[self._model] = self
        self._state = "open"
        self._parts.loop.costs.add("build", time.perf_counter_ns() - start_ns)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the model as it was and note how the training ended; an exception goes on."""
        self._restore_model()
        self._state = "closed"
        if not self._parts.writer.is_mine:  # a forked process leaves by the same door, and the session is not its own
            return
        self._parts.end(*how_it_ended(error))
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
        parts = self._parts
        if not parts.replicas.devices:  # a strategy under which nothing is recorded
            return train_step
        step = InstrumentedStep(train_step, parts.loop, parts.probes_of_loops(), self._is_built, self._advance)
        self._instrumented.append(step)
        parts.samples.may_be_told_loss = True
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
        parts = self._parts
        parts.samples.flush(loss)
        parts.health.last_loss = loss
        if not self._instrumented and parts.loop.is_sample_due:
            parts.samples.nothing_fires()
        self._called.clear()
        parts.loop.count()
        if not self._instrumented:  # an instrumented step polls by itself
            parts.loop.poll_when_due()

    def pause(self) -> None:
        """Sample nothing until `resume`."""
        self._require_open("pause")
        self._parts.loop.pause(True)

    def resume(self) -> None:
        """Sample again."""
        self._require_open("resume")
        self._parts.loop.pause(False)

    def verify(self, **options: Any) -> Verification:
        """Prove by replay which layers have to stay in float32, with the model as it is now; inside or after the block.

        Batches that were kept (`keep_batches_mib`) go forward and backward without an update, in float32 and under the
        policies that are tried; the smallest set of layers that agrees with float32 is found and priced. The outcome
        is written into the run directory, with `policy.yaml`.

        Args:
            **options: `most_batches` to replay (3), `most_tests` sets of layers to try (60), `most_s` after which no
                further set is tried (no limit), a `dataset` to take batches from where none were kept, a `criterion`
                (`precscope.replay.Criterion`), and `report`, which is called before each set with the number of sets
                tried and of those left at most.

        Raises:
            SessionError: The session has not begun.
            PrecScopeError: No batches were kept, or there is nothing to compare them with.
        """
        if self._state == "new":
            raise SessionError("session.verify was called before the session began: it tests what a training recorded.")
        from precscope.probes.verify_session import progress_line, verify_and_write

        if self._state == "open":
            self._parts.samples.flush()
        step = self._instrumented[-1].plain if self._instrumented else None
        optimizer = next(iter(self._optimizers.given), None)
        try:
            with progress_line() as report:
                given = {"report": report, "step": step, "optimizer": optimizer} | options
                return verify_and_write(self._model, self.path, **given)
        finally:
            if self._state == "open":
                self._parts.loop.open_window()  # this was no train step

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
        parts = self._parts
        if not isinstance(current, ChoosingTrainFunction) or current.plain is not plain:
            parts.loss_scale.count_anew()
            current = ChoosingTrainFunction(model, plain, parts.loop, parts.probes)
        model.train_function = current if parts.replicas.devices else plain
        return model.train_function

    def _is_built(self) -> bool:
        return bool(self._model.built and self._optimizers.leading().built)

    def _advance(self, step: InstrumentedStep) -> None:
        """Count a step where the loop does not call `session.step`: the same function begins again."""
        if id(step) in self._called:
            self._parts.samples.flush()
            self._called.clear()
            self._parts.loop.count()
        self._called.add(id(step))
