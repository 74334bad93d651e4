"""What a case of the zoo is: a small model, its data, and the truth about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import keras

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["Case", "Data", "build", "keep_in_float32"]


class Data(NamedTuple):
    """Rows in the order in which they are trained on; `x` is a tree of arrays."""

    x: Any
    y: Any


@dataclass(frozen=True)
class Case:
    """A small model with a known truth, which `verify_labels.py` has checked by training.

    Attributes:
        name: Unique in the zoo.
        reason: What goes wrong, and why.
        make: Returns the compiled model, built under the global dtype policy.
        data: Returns the rows; batches are taken in their order.
        truth: Ids of the layers whose float32 computation cures the case; no smaller set does. Empty where another
            action is the answer, or none is needed.
        action: What to do: one of `precscope.advice.finding.Action`; "none" for a healthy control.
        also_right: Other actions that cure it as well.
        suspects: Layers that an action other than float32 may name.
        repair: Fields of the case to replace, which is how an action other than float32 is carried out.
        extras: Layers that may be kept in float32 without being needed, with the reason.
        policy: The policy in which it fails.
        batch: Rows in a batch.
        goes_nonfinite: Whether an activation, a gradient or the loss becomes infinite or NaN, other than in the steps
            that a loss scale takes to find its level.
        source_layer: The layer where that begins; None where it does not, or at no single layer.
        direction: The pass in which it begins.
        first_bad_step: The first train step in which it does; else the first that the loss scale skips, if it does.
        bound: How far the final loss may lie from float32's, as a share of it, to count as the same.
    """

    name: str
    reason: str
    make: Callable[[], Any]
    data: Callable[[], Data]
    truth: frozenset[str] = frozenset()
    action: str = "keep_float32"
    also_right: frozenset[str] = frozenset()
    suspects: frozenset[str] = frozenset()
    repair: Mapping[str, Any] = field(default_factory=dict, hash=False)
    extras: Mapping[str, str] = field(default_factory=dict, hash=False)
    policy: str = "mixed_float16"
    batch: int = 64
    goes_nonfinite: bool = False
    source_layer: str | None = None
    direction: Literal["forward", "backward"] | None = None
    first_bad_step: int | None = None
    bound: float = 0.02

    @property
    def is_healthy(self) -> bool:
        """Whether nothing is wrong with it."""
        return self.action == "none"


def build(case: Case, policy: str | None = None, float32: Iterable[str] = (), seed: int = 1) -> Any:
    """Return the compiled model under `policy` (the case's own by default), `float32` layers computing in float32.

    Weights begin equal under every policy.
    """
    before = keras.config.dtype_policy()
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(policy or case.policy)
    try:
        model = case.make()
    finally:
        keras.config.set_dtype_policy(before)
    keep_in_float32(model, float32)
    return model


def keep_in_float32(model: Any, names: Iterable[str]) -> None:
    """Let layers, with all that they hold, compute in float32: before the train function is traced.

    Raises:
        KeyError: The model has no layer of that id.
    """
    from precscope.probes.internals.layer_tree import walk_layers

    layers = dict(walk_layers(model))
    for name in names:
        for layer_id, layer in [(name, layers[name]), *layers.items()]:
            if layer_id == name or layer_id.startswith(f"{name}/"):
                layer.dtype_policy = "float32"
