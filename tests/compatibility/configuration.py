"""What the compatibility matrix trains: configurations by name, and what each of them hands to the judge."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")
BATCH = 4
STEPS = 4


@dataclass
class Training:
    """One training, ready to start.

    Attributes:
        model: What the session watches.
        run: Trains and returns the losses in order; given a session, or `Unwatched` where there is none.
        optimizer: What `precscope.profile` is given for a custom loop.
        others: Models that train along (a GAN's parts that `model` does not own): their weights are compared too.
    """

    model: Any
    run: Callable[[Any], Sequence[float]]
    optimizer: Any = None
    others: Sequence[Any] = ()


@dataclass(frozen=True)
class Configuration:
    """A real way to train.

    Attributes:
        name: Unique; the key of its results.
        group: Heading in the docs.
        build: Makes the training under the global dtype policy, always the same one.
        policies: Dtype policies that it is run under.
        quick: Whether it is part of the normal tests, under its first policy.
        extended: Whether it is left out unless all are asked for: a further member of a family that is there.
        unseen: Reasons that are expected beside the usual ones: a pattern of layer ids, and of the reason.
        notices: A pattern of notices that are expected.
        weights_unseen: Why gradients of some trainable variables are not recorded, where that is expected.
        refused: What Keras itself says where it refuses to train this, a pattern: PrecScope must change nothing of it.
        needs: Package without which it is skipped.
        bound_factor: How much wider its bound is, with the reason in `remark`.
        remark: What the docs say beside it.
    """

    name: str
    group: str
    build: Callable[[], Training]
    policies: tuple[str, ...] = ("mixed_float16",)
    quick: bool = False
    extended: bool = False
    unseen: Mapping[str, str] = field(default_factory=dict)
    notices: str | None = None
    weights_unseen: str | None = None
    refused: str | None = None
    needs: str | None = None
    bound_factor: float = 1.0
    remark: str = ""

    @property
    def missing(self) -> str | None:
        """Name the package that is not installed, or None."""
        return self.needs if self.needs is not None and importlib.util.find_spec(self.needs) is None else None


#: Every configuration by name; the modules that define them are imported by `tests.compatibility.catalog`.
CONFIGURATIONS: dict[str, Configuration] = {}


def configuration(name: str, group: str, **keywords: Any) -> Callable[[Callable[[], Training]], Callable[[], Training]]:
    """Register the function below as the configuration `name`; keywords as in `Configuration`."""

    def register(build: Callable[[], Training]) -> Callable[[], Training]:
        if name in CONFIGURATIONS:
            raise ValueError(f"There are two configurations named {name!r}.")
        CONFIGURATIONS[name] = Configuration(name, group, build, **keywords)
        return build

    return register


class Unwatched:
    """Stands in for a session in a training without PrecScope."""

    def instrument(self, train_step: Callable[..., Any]) -> Callable[..., Any]:
        """Return the step as it is."""
        return train_step

    def step(self, loss: Any = None) -> None:
        """Do nothing."""


class Losses(keras.callbacks.Callback):
    """Keeps the loss that each step logged."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if logs and "loss" in logs:
            self.values.append(float(logs["loss"]))


def noise(*shape: int, seed: int = 5) -> np.ndarray:
    """Return normal float32 numbers, always the same for a shape and seed."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def integers(high: int, *shape: int, low: int = 0, seed: int = 6) -> np.ndarray:
    """Return int32 numbers from `low` up to `high`, exclusive."""
    return np.random.default_rng([seed, high, *shape]).integers(low, high, shape).astype(np.int32)


def compiled(model: Any, loss: Any = "mse", optimizer: Any = "sgd", **keywords: Any) -> Any:
    """Return `model` compiled with the same defaults for all: without XLA, which would take most of the time."""
    model.compile(**({"optimizer": optimizer, "loss": loss, "jit_compile": False} | keywords))
    return model


def fit(model: Any, x: Any, y: Any = None, *, others: Sequence[Any] = (), **keywords: Any) -> Training:
    """Return a training by `model.fit` in batches of BATCH, in order."""

    def run(session: Any) -> list[float]:
        losses = Losses()
        arguments: dict[str, Any] = {"verbose": 0, "shuffle": False}
        if not isinstance(x, tf.data.Dataset):
            arguments["batch_size"] = BATCH
        arguments |= keywords
        arguments["callbacks"] = [losses, *arguments.get("callbacks", ())]
        model.fit(x, y, **arguments)
        return losses.values

    return Training(model, run, others=others)
