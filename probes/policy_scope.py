"""A precision policy for a model that is built inside a block: `precscope.policy_scope`."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import keras

from precscope.errors import PolicyError
from precscope.formats import FORMATS
from precscope.layer_match import match_layers
from precscope.policy import MODEL, Policy
from precscope.policy_file import read_policy
from precscope.probes.apply_policy import AppliedPolicy, apply_policy
from precscope.probes.internals.dtype_policies import set_own_policy
from precscope.probes.internals.layer_calls import created_layers
from precscope.probes.internals.layer_tree import functional_inside, walk_layers
from precscope.probes.layer_policies import cannot_flip

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

__all__ = ["PolicyScope", "policy_scope"]


class PolicyScope:
    """What `policy_scope` did; known when the block has ended.

    Attributes:
        model: The model that was built in the block.
        applied: What was changed in it, as `precscope.apply_policy` tells.
    """

    def __init__(self) -> None:
        self.model: Any = None
        self.applied: AppliedPolicy | None = None


@contextmanager
def policy_scope(policy: Policy | str | os.PathLike[str]) -> Iterator[PolicyScope]:
    """Build a model under a precision policy: `with precscope.policy_scope("policy.yaml"): model = build()`.

    Keras' global policy is the policy's default inside the block. A layer that is named gets its policy when it is
    made, where its name alone tells which it is; at the end of the block every layer of the model is looked at, as
    `precscope.apply_policy` does, whatever it was given. `keras.models.load_model` may stand in the block too.

    Args:
        policy: A file that `precscope policy` or `precscope verify` wrote, or a policy that was read.

    Raises:
        PolicyError: The file cannot be read; or, at the end of the block, not exactly one model of the policy's kind
            was built in it, or a name matches no layer or two.
    """
    policy = policy if isinstance(policy, Policy) else read_policy(policy)
    try:
        default = keras.dtype_policies.get(policy.default)
    except (ValueError, TypeError) as error:
        raise PolicyError(f"Keras knows no dtype policy {policy.default!r}, which the policy names: {error}") from None
    scope, models, by_name = PolicyScope(), [], _policies_by_name(policy)

    def created(layer: Any) -> None:
        if isinstance(layer, keras.Model):
            models.append(layer)
        named = by_name.get((layer.name, type(layer).__name__))
        if named is not None and layer.compute_dtype in FORMATS and cannot_flip(layer, named) is None:
            set_own_policy(layer, keras.dtype_policies.get(named))

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(default)
    try:
        with created_layers(created):
            yield scope
    finally:
        keras.config.set_dtype_policy(before)
    scope.model = _the_model(policy, models)
    scope.applied = apply_policy(scope.model, policy)


def _policies_by_name(policy: Policy) -> dict[tuple[str, str], str]:
    """Return the policies of named layers by (name, class), where only one layer of the model has both."""
    layers = policy.made_for.layers
    count = Counter((layer.rpartition("/")[2], type) for layer, type in layers.items())
    named = {kept.layer: kept.policy for kept in policy.kept} | {pin.layer: pin.policy for pin in policy.pins}
    keys = {layer: (layer.rpartition("/")[2], layers[layer]) for layer in named if layer in layers}
    return {key: named[layer] for layer, key in keys.items() if count[key] == 1}


def _the_model(policy: Policy, models: list[Any]) -> Any:
    """Return the one model that was built and that the policy fits."""
    inner = {id(functional_inside(model)) for model in models}  # what a Sequential keeps for itself
    candidates = [model for model in models if id(model) not in inner]
    if not candidates:
        raise PolicyError(
            "No model was built inside precscope.policy_scope. Call the function that builds it inside the block: "
            "with precscope.policy_scope(policy): model = build()."
        )
    layers = [{name: type(layer).__name__ for name, layer in walk_layers(m)} for m in candidates]
    fitting = [m for m, found in zip(candidates, layers, strict=True) if _fits(policy, found)]
    if len(fitting) > 1:
        names = ", ".join(repr(model.name) for model in fitting)
        raise PolicyError(
            f"{len(fitting)} models were built inside precscope.policy_scope that the policy fits ({names}); expected "
            "one, so that each name means one layer. Build one in the block, or call precscope.apply_policy on each."
        )
    # Where none fits, the largest is the one that was meant; apply_policy says what is wrong with it.
    return fitting[0] if fitting else max(zip(map(len, layers), range(len(layers)), candidates, strict=True))[2]


def _fits(policy: Policy, layers: dict[str, str]) -> bool:
    try:
        match_layers(policy, layers)
    except PolicyError:
        return False
    return any(layer != MODEL for layer in layers)
