"""A train step of a user's own training loop, with the choice between the plain and the probed one."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from precscope.probes.internals.distribution import ONE_REPLICA
from precscope.probes.internals.tf_functions import is_compiled_by_xla
from precscope.probes.replicas import recorder_for
from precscope.probes.train_function import probed_function

if TYPE_CHECKING:
    from collections.abc import Callable

    from precscope.probes.batch_handout import BatchHandout
    from precscope.probes.internals.distribution import Replicas
    from precscope.probes.optimizer_taps import OptimizerTaps
    from precscope.probes.recorder import Recorder
    from precscope.probes.sampling_loop import SamplingLoop
    from precscope.probes.taps import LayerTaps
    from precscope.probes.tripwire import Tripwire

__all__ = ["InstrumentedStep"]


class InstrumentedStep:
    """Calls like the train step that it was made from; `plain` is that step itself.

    Args:
        plain: A tf.function, or a plain function that runs eagerly.
        loop: Decides which step is probed.
        make_taps: Plans and returns the taps, called when the first sample is due.
        ready: Tells whether everything that the first step builds is there.
        advance: Called before each step with this object, so that the session counts steps.
        handout: Takes the batches of sampled steps, where somebody wants them.
        tripwire: Keeps what it takes to run a bad step again, where that is asked for.
        replicas: Who runs the step.
    """

    def __init__(
        self,
        plain: Callable[..., Any],
        loop: SamplingLoop,
        make_taps: Callable[[Recorder], tuple[LayerTaps, *tuple[OptimizerTaps, ...]]],
        ready: Callable[[], bool],
        advance: Callable[[InstrumentedStep], None],
        handout: BatchHandout | None = None,
        tripwire: Tripwire | None = None,
        replicas: Replicas = ONE_REPLICA,
    ) -> None:
        self._replicas = replicas
        self._handout = handout
        self._tripwire = tripwire
        functools.update_wrapper(self, getattr(plain, "python_function", plain))
        self.plain = plain
        self._loop = loop
        self._make_taps = make_taps
        self._ready = ready
        self._advance = advance
        self._recorder: Recorder | None = None
        self._probed: Callable[..., Any] | None = None
        self._warm = False  # whether the plain step has run: it builds and compiles what it would without PrecScope

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one train step."""
        self._advance(self)
        if self._tripwire is None or not self._tripwire.is_on:
            return self._run(*args, **kwargs)
        self._tripwire.before_step(self._loop.steps_seen, args, kwargs, self.plain)
        result = self._run(*args, **kwargs)
        self._tripwire.after_step(result)
        return result

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        loop = self._loop
        if self._warm and loop.steps_seen < loop.next_step:
            return self.plain(*args, **kwargs)
        if not (self._warm and self._ready()):
            loop.skip()
            result = self.plain(*args, **kwargs)
            self._warm = True
            loop.open_window(loop.steps_seen + 1)
            return result
        if loop.is_profiled():
            return self.plain(*args, **kwargs)
        if not loop.is_sample_due:
            loop.poll_when_due()
            return self.plain(*args, **kwargs)

        def prepare() -> tuple[Recorder, Callable[[], Any]]:
            recorder, probed = self._prepare()
            if self._handout is not None:
                self._handout.put(self.plain, args, kwargs)
            return recorder, lambda: probed(*args, **kwargs)

        return loop.run(prepare, lambda: self.plain(*args, **kwargs), count=False)

    def _prepare(self) -> tuple[Recorder, Callable[..., Any]]:
        if self._recorder is None or self._probed is None:
            recorder = recorder_for(self._replicas, is_compiled_by_xla(self.plain))
            self._probed = probed_function(self.plain, recorder, *self._make_taps(recorder))
            self._recorder = recorder
        return self._recorder, self._probed
