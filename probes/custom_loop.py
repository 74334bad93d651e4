"""A train step of a user's own training loop, with the choice between the plain and the probed one."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from precscope.probes.probed_step import StepProbes
    from precscope.probes.recorder import Recorder
    from precscope.probes.sampling_loop import SamplingLoop

__all__ = ["InstrumentedStep"]


class InstrumentedStep:
    """Calls like the train step that it was made from; `plain` is that step itself.

    Args:
        plain: A tf.function, or a plain function that runs eagerly.
        loop: Decides which step is probed.
        probes: What the step gets.
        ready: Tells whether everything that the first step builds is there.
        advance: Called before each step with this object, so that the session counts steps.
    """

    def __init__(
        self,
        plain: Callable[..., Any],
        loop: SamplingLoop,
        probes: StepProbes,
        ready: Callable[[], bool],
        advance: Callable[[InstrumentedStep], None],
    ) -> None:
        self._probes = probes
        self._tripwire = probes.tripwire
        functools.update_wrapper(self, getattr(plain, "python_function", plain))
        self.plain = plain
        self._loop = loop
        self._ready = ready
        self._advance = advance
        self._recorder: Recorder | None = None
        self._probed: Callable[..., Any] | None = None
        self._warm = False  # whether the plain step has run: it builds and compiles what it would without PrecScope

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one train step."""
        self._advance(self)
        run = self._chosen(args, kwargs)
        tripwire = self._tripwire
        if tripwire is None or not tripwire.is_on:
            return run()
        tripwire.before_step(self._loop.steps_seen, args, kwargs, self.plain)
        result = run()
        tripwire.after_step(result)
        return result

    def _chosen(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
        """Return what runs this step. A poll that is due comes first: it looks at the steps before this one."""
        loop = self._loop
        plain = functools.partial(self.plain, *args, **kwargs)
        if self._warm and loop.steps_seen < loop.next_step:
            return plain
        if not (self._warm and self._ready()):
            return functools.partial(self._run_first, plain)
        if loop.is_profiled():
            return plain
        if not loop.is_sample_due:
            loop.poll_when_due()
            return plain

        def prepare() -> tuple[Recorder, Callable[[], Any]]:
            recorder, probed = self._prepare()
            if self._probes.handout is not None:
                self._probes.handout.put(self.plain, args, kwargs)
            return recorder, lambda: probed(*args, **kwargs)

        return lambda: loop.run(prepare, plain, count=False)

    def _run_first(self, plain: Callable[[], Any]) -> Any:
        """Run a step before which not everything is built."""
        loop = self._loop
        loop.skip()
        result = plain()
        self._warm = True
        loop.open_window(loop.steps_seen + 1)
        return result

    def _prepare(self) -> tuple[Recorder, Callable[..., Any]]:
        if self._recorder is None or self._probed is None:
            self._recorder, self._probed = self._probes.probed(self.plain)
        return self._recorder, self._probed
