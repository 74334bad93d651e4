"""A precision policy: which layers compute in which dtype, why, and what the optimizer needs for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MODEL", "KeptLayer", "MadeFor", "OptimizerNeeds", "Pin", "Policy", "Price", "Proof", "Reason"]

#: Id of the model itself, whose own policy casts what is fed to a subclassed model.
MODEL = "(model)"


@dataclass(frozen=True)
class Reason:
    """A finding that asks for a pin.

    Attributes:
        finding: The rule's name.
        confidence: "measured", "predicted" or "observed".
        sentence: What was found.
        numbers: The values that caused it, by name.
    """

    finding: str
    confidence: str
    sentence: str
    numbers: Mapping[str, float | int | None] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Price:
    """What one pin costs beside a policy without it: measured medians, negative where it gains. None: not measured.

    Attributes:
        time_ms: Milliseconds of one forward and backward pass, without the optimizer's update.
        memory_mib: MiB of the allocator's peak; None on a CPU, whose allocator keeps no account.
        casts: Operations that cast between floating-point dtypes.
        time_noise_ms: How far the times scattered, in milliseconds: a smaller difference says nothing.
    """

    time_ms: float | None = None
    memory_mib: float | None = None
    casts: int | None = None
    time_noise_ms: float | None = None


@dataclass(frozen=True)
class Pin:
    """A layer to keep off the default policy, with all that it owns.

    Attributes:
        layer: Its id: the path by ownership, as in the run. `MODEL` is the model itself, without its layers.
        policy: Name of its dtype policy.
        type: Its class name.
        reasons: The findings that ask for it; empty where only the proof does.
        price: What it costs; None where that was not measured.
    """

    layer: str
    policy: str = "float32"
    type: str = "Layer"
    reasons: tuple[Reason, ...] = ()
    price: Price | None = None


@dataclass(frozen=True)
class KeptLayer:
    """A layer that was off the default policy when the run was made, and stays so."""

    layer: str
    policy: str


@dataclass(frozen=True)
class OptimizerNeeds:
    """What the optimizer needs.

    Attributes:
        loss_scale_optimizer: Whether it is to be wrapped in `keras.optimizers.LossScaleOptimizer`.
        initial_scale: The loss scale to begin with; None without one.
    """

    loss_scale_optimizer: bool = False
    initial_scale: float | None = None


@dataclass(frozen=True)
class MadeFor:
    """The model and the run that a policy was made from.

    Attributes:
        model: The model's name.
        model_class: Its class name.
        run: The run directory's name.
        started_unix_s: When that run started.
        layers: Class names of all layers by id.
    """

    model: str
    model_class: str
    run: str
    started_unix_s: float | None = None
    layers: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Proof:
    """What replaying batches under the policy showed.

    Attributes:
        sentence: The outcome in words.
        cosine_before: The gradient's cosine to float32 under plain mixed precision, the worst seen; None where it was
            not finite.
        cosine_after: The same under this policy.
        threshold: What it had to reach.
        batches: How many batches were replayed.
        loss_scales: At which loss scales.
        device: On what.
    """

    sentence: str
    cosine_before: float | None
    cosine_after: float | None
    threshold: float
    batches: int
    loss_scales: tuple[float, ...]
    device: str


@dataclass(frozen=True)
class Policy:
    """Which layers compute in which dtype, and why.

    Attributes:
        default: Name of the dtype policy of every layer that is not named below.
        made_for: The model and the run that it was made from.
        pins: Layers to keep off the default, worst first. A pin covers what the layer owns.
        kept: Layers that were off the default already; each for itself.
        optimizer: What the optimizer needs.
        proven: Whether replaying batches showed that it suffices; None where that was not tried.
        proof: What that showed.
    """

    default: str
    made_for: MadeFor
    pins: tuple[Pin, ...] = ()
    kept: tuple[KeptLayer, ...] = ()
    optimizer: OptimizerNeeds = field(default_factory=OptimizerNeeds)
    proven: bool | None = None
    proof: Proof | None = None
