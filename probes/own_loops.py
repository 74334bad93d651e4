"""Training loops that a program writes itself, noticed so that nobody takes them for recorded.

Only the program knows where a step of such a loop begins and ends, so it is told how to say that. What is noticed is
the first `optimizer.apply` outside Keras' own loops, in eager code or while a tf.function is traced; then nothing looks
any more.
"""

from __future__ import annotations

import functools
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OwnLoopWatch"]


class OwnLoopWatch:
    """Looks for a training loop of the program's own, until it has found one.

    Args:
        keras: The Keras that the program imported.
        is_known: Tells whether what trains at the moment is recorded, or known not to be.

    Attributes:
        place: Where the loop updates its weights, as "train.py:12"; None where there is no such loop.
    """

    def __init__(self, keras: Any, is_known: Callable[[], bool]) -> None:
        self.place: str | None = None
        self._is_known = is_known
        optimizer_class = keras.optimizers.Optimizer
        original = optimizer_class.apply
        own = vars(optimizer_class).get("apply")  # none: Keras has it in a base class

        @functools.wraps(original)
        def apply(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            self._look()
            return original(optimizer, *args, **kwargs)

        optimizer_class.apply = apply
        self._undo: Callable[[], None] | None = lambda: (
            delattr(optimizer_class, "apply") if own is None else setattr(optimizer_class, "apply", own)
        )

    def close(self) -> None:
        """Put Keras' method back."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()

    def _look(self) -> None:
        if self.place is not None or self._is_known():
            return
        self.place = "a call of optimizer.apply"
        self.close()
        with suppress(Exception):  # no more than a line in a message, and the training must go on
            from precscope.probes.code_places import innermost_own_frame, place_of_frame
            from precscope.probes.internals.graphs import call_stack

            frame = innermost_own_frame(call_stack())
            if frame is not None:
                self.place = place_of_frame(frame).partition(": ")[0]

    def advice(self) -> str | None:
        """Return what to tell the user at the end; None where there is no such loop."""
        if self.place is None:
            return None
        return (
            f"the program's own training loop, at {self.place}, was not recorded.\n"
            "  It has to say what its step is (docs/run_scripts.md):\n"
            '    with precscope.profile(model, "runs/loop", optimizer=optimizer) as session:\n'
            "        train_step = session.instrument(train_step)\n"
            "        ...\n"
            "        session.step(loss)    # after each step"
        )
