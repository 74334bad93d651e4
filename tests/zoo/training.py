"""Trains a case for 200 steps and says how it went."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from tests.zoo.case import build

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.zoo.case import Case

__all__ = ["STEPS", "Outcome", "train", "train_model"]

STEPS = 200
_LAST = 16  # steps whose mean is the final loss


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    Attributes:
        losses: Of each step.
        skips: The steps whose update was not applied.
    """

    losses: tuple[float, ...]
    skips: tuple[int, ...]

    @property
    def final_loss(self) -> float:
        """The mean over the last steps; NaN or infinite where one of them was."""
        return float(np.mean(self.losses[-_LAST:]))

    @property
    def first_bad_step(self) -> int | None:
        """The first step that was skipped, or whose loss was not finite."""
        bad = [step for step, loss in enumerate(self.losses) if not math.isfinite(loss)]
        return min([*bad[:1], *self.skips[:1]], default=None)

    def distance_to(self, other: Outcome) -> float:
        """Return how far the final losses lie apart, as a share of the other; infinite where one is not finite."""
        distance = abs(self.final_loss - other.final_loss) / abs(other.final_loss)
        return distance if math.isfinite(distance) else math.inf


class _Steps(keras.callbacks.Callback):
    """Notes each step's loss (Keras' logs hold the mean of the epoch so far) and whether it was applied."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.skips: list[int] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.model.reset_metrics()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        step = len(self.losses)
        self.losses.append(float(logs["loss"]))
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        if int(optimizer.iterations.numpy()) + len(self.skips) == step:
            self.skips.append(step)


def train(
    case: Case, policy: str | None = None, float32: Iterable[str] = (), seed: int = 1, steps: int = STEPS
) -> Outcome:
    """Train `case` under `policy`, with the layers `float32` kept in it."""
    return train_model(case, build(case, policy, float32, seed), steps=steps)


def train_model(case: Case, model: Any, watching: Any = None, steps: int = STEPS) -> Outcome:
    """Train a model of `case` inside the context `watching`."""
    x, y = case.data()
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(case.batch, drop_remainder=True).cache().repeat()
    noting = _Steps()
    with np.errstate(over="ignore"), watching or nullcontext():  # constants that float16 cannot hold
        model.fit(batches, steps_per_epoch=steps, callbacks=[noting], shuffle=False, verbose=0)
    return Outcome(tuple(noting.losses), tuple(noting.skips))
