"""The plain and the probed train function of a Keras model, and the one that chooses between them.

Keras builds `model.train_function` from `model.train_step`. That one is kept as it is: the plain function. A second one
is built from the same step with taps in it: the probed function. Between samples this adds one comparison to a step.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from precscope.probes.internals.train_functions import build_train_function, steps_per_epoch, usual_batch
from precscope.probes.tripwire import without_optionals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from precscope.probes.probed_step import StepProbes
    from precscope.probes.recorder import Recorder
    from precscope.probes.sampling_loop import SamplingLoop
    from precscope.probes.tripwire import Tripwire

__all__ = ["ChoosingTrainFunction"]

_ITERATORS = (tf.data.Iterator, tf.distribute.DistributedIterator)


def _nothing() -> None:
    """Stand in for a weak reference that has no target yet."""


class ChoosingTrainFunction:
    """Stands in for `model.train_function` during a session.

    Args:
        model: A compiled Keras model.
        plain: The train function that Keras built.
        loop: Decides which step is probed.
        probes: What the step gets.

    Attributes:
        plain: The train function that Keras built.
    """

    def __init__(
        self,
        model: Any,
        plain: Callable[[Any], Any],
        loop: SamplingLoop,
        probes: StepProbes,
    ) -> None:
        self._probes = probes
        self._tripwire = probes.tripwire
        self.plain = plain
        self._model = model
        self._loop = loop
        self._steps = int(model.steps_per_execution)
        self._recorder: Recorder | None = None
        self._probed: Callable[[Any], Any] | None = None
        self._warm = False  # whether the plain function has run: it builds and compiles what it would without PrecScope
        self._batch: int | None = None
        # Weak: an iterator that lives longer than Keras lets it live holds up the next epoch when it goes.
        self._iterator: Callable[[], Any] = _nothing
        self._epoch = -1
        self._epoch_first_step = 0
        self._epoch_steps: int | None = None
        self._next_watched = 0  # the first step that the tripwire was not told of
        loop.place_in_epoch = self._place_in_epoch

    def __call__(self, iterator: Any) -> Any:
        """Run the next step, or `steps_per_execution` of them, on what `iterator` gives next."""
        loop = self._loop
        if iterator is not self._iterator() and isinstance(iterator, _ITERATORS):
            return self._first_of_epoch(iterator)
        if self._warm and loop.steps_seen < loop.next_step:
            result = self._run_on(self.plain, iterator)
            loop.steps_seen += self._steps
            return result
        if self._warm and loop.is_profiled(self._steps, self._left_in_epoch(iterator)):
            result = self._run_on(self.plain, iterator)
            loop.count(self._steps)
            return result
        loop.poll_when_due()
        return self._sampled(iterator)

    def _first_of_epoch(self, iterator: Any) -> Any:
        """Note where the epoch begins: time between epochs is no train step, and the last batch may be ragged."""
        loop = self._loop
        if self._iterator is not _nothing:
            self._epoch_steps = loop.steps_seen - self._epoch_first_step
        self._iterator, self._epoch_first_step = weakref.ref(iterator), loop.steps_seen
        self._epoch += 1
        loop.new_epoch()
        result = self(iterator)
        loop.open_window()
        return result

    def _sampled(self, iterator: Any) -> Any:
        loop = self._loop
        if self._is_last_of_epoch() or not self._warm or not loop.is_sample_due:
            loop.skip()
            result = self._run_on(self.plain, iterator)
            loop.steps_seen += self._steps
            if not self._warm:
                self._warm = True
                self._batch = loop.batch = usual_batch(self._model, self._steps)
                loop.open_window()
            return result
        if self._tripwire is not None and self._tripwire.is_on:
            return self._sampled_past(self._tripwire, iterator)
        if not isinstance(iterator, _ITERATORS):
            batches = list(itertools.islice(iterator, self._steps))
            return self._run(lambda function: self._run_on(function, iter(batches)))
        # The iterator itself, as for the plain function: whatever else asks it is one more way to change the training.
        return self._run(lambda function: self._run_on(function, iterator))

    def _run_on(self, function: Callable[[Any], Any], iterator: Any) -> Any:
        """Run a train function on what `iterator` gives next; past the tripwire where there is one."""
        if self._tripwire is None or not self._tripwire.is_on:
            return function(iterator)
        first = next(iterator)  # StopIteration is how Keras hears that the epoch is over
        result = function(self._past_the_tripwire(self._tripwire, first, iterator))
        self._tripwire.after_step(result)
        return result

    def _sampled_past(self, tripwire: Tripwire, iterator: Any) -> Any:
        """Sample a step whose batches the tripwire takes: should the probed one fail, the plain one makes up for it.

        It gets the same batches, but for those whose update was made before the failure: these steps were made.
        """
        loop, batches, updates = self._loop, list(itertools.islice(iterator, self._steps)), tripwire.updates()

        def call(function: Callable[[Any], Any]) -> Any:
            made = tripwire.updates() - updates if isinstance(iterator, _ITERATORS) else 0
            loop.steps_seen += made
            return self._run_on(function, itertools.chain(batches[made:], iterator))

        return self._run(call)

    def _past_the_tripwire(self, tripwire: Tripwire, batch: Any, iterator: Any) -> Iterator[Any]:
        """Yield the batches of one call; Keras' function asks for each right before its step."""
        for number in range(self._steps):
            if number:
                batch = next(iterator, _nothing)
            if batch is _nothing:
                return
            step = self._loop.steps_seen + number
            if step >= self._next_watched:  # else it is made once more, plain, after the probed one failed
                self._next_watched = step + 1
                tripwire.before_step(step, (without_optionals(batch),), {})
            yield batch

    def _run(self, call: Callable[[Callable[[Any], Any]], Any]) -> Any:
        def prepare() -> tuple[Recorder, Callable[[], Any]]:
            recorder, probed = self._prepare()
            return recorder, lambda: call(probed)

        return self._loop.run(prepare, lambda: call(self.plain), self._steps)

    def _place_in_epoch(self, step: int) -> tuple[int, int] | None:
        """Return epoch and batch of a step since the last iterator began, from 0; None for others."""
        in_epoch = step - self._epoch_first_step
        if self._epoch < 0 or in_epoch < 0:
            return None
        # Keras goes through all epochs with one iterator where `fit` was given `steps_per_epoch`.
        epochs, batch = divmod(in_epoch, steps_per_epoch(self._model) or sys.maxsize)
        return self._epoch + epochs, batch

    def _is_last_of_epoch(self) -> bool:
        """Tell whether this may be a smaller batch, which would be compiled once more for one step in an epoch."""
        in_epoch = self._loop.steps_seen - self._epoch_first_step
        return self._epoch_steps is not None and in_epoch > 0 and in_epoch + self._steps == self._epoch_steps

    def _left_in_epoch(self, iterator: Any) -> int | None:
        """Return how many steps are left before the epoch's last, which may be smaller; None where unknown."""
        epoch_steps = steps_per_epoch(self._model) or self._epoch_steps
        if not epoch_steps or not isinstance(iterator, _ITERATORS):
            return None
        # Keras goes through all epochs with one iterator where `fit` was given `steps_per_epoch`.
        in_epoch = (self._loop.steps_seen - self._epoch_first_step) % epoch_steps
        return max(max(epoch_steps - self._steps, self._steps) - in_epoch, 0)

    def _prepare(self) -> tuple[Recorder, Callable[[Any], Any]]:
        if self._recorder is None or self._probed is None:
            model, handout = self._model, self._probes.handout
            in_xla = bool(model.jit_compile and not model.run_eagerly)
            self._recorder, step = self._probes.probed(model.train_step, in_xla, self._batch)
            self._probed = build_train_function(model, step, None if handout is None else handout.take)
        return self._recorder, self._probed
