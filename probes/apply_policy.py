"""A precision policy, put on a model that is built: `precscope.apply_policy`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras

from precscope.advice.wording import counted, listed
from precscope.errors import PolicyError
from precscope.formats import FORMATS
from precscope.layer_match import match_layers
from precscope.policy import MODEL, Policy
from precscope.policy_file import read_policy
from precscope.probes.internals.dtype_policies import own_policy, set_saved_policies
from precscope.probes.internals.optimizers import is_dynamic, set_initial_scale, wrap_optimizer, wrapped_optimizer
from precscope.probes.internals.train_functions import forget_traced_functions
from precscope.probes.layer_policies import cannot_flip, model_layers, set_layer_policies, with_sublayers

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["AppliedPolicy", "apply_policy", "wanted_policies"]


@dataclass(frozen=True)
class AppliedPolicy:
    """What `apply_policy` did.

    Attributes:
        changed: Policies by layer id, of the layers that had another one.
        optimizer: The optimizer to train with: the model's, or the one that was given, wrapped where float16 needs it;
            None where the model is not compiled and none was given.
        wrapped: Whether that optimizer was wrapped in a LossScaleOptimizer just now.
        left: Why a sub-layer of a pinned layer stays as it is, by id: it cannot be given the policy.
        not_saved: Ids of layers off the default policy whose policy a saved model does not hold, because a custom
            layer makes them anew. Load such a model inside `precscope.policy_scope`.
        initial_scale: The loss scale that the optimizer begins with, where that was set just now; else None.
    """

    changed: Mapping[str, str]
    optimizer: Any
    wrapped: bool
    left: Mapping[str, str]
    not_saved: tuple[str, ...]
    initial_scale: float | None = None

    def __str__(self) -> str:
        parts = [f"{counted(len(self.changed), 'layer')} changed" if self.changed else "No layer had to be changed"]
        if self.wrapped:
            parts.append("the optimizer is wrapped in a LossScaleOptimizer")
        if self.initial_scale is not None:
            parts.append(f"the loss scale begins at {self.initial_scale:,g}")
        if self.left:
            parts.append(f"{listed(tuple(self.left))} stayed as they are")
        if self.not_saved:
            parts.append(
                f"a saved model does not hold the policy of {listed(self.not_saved)}: load it inside "
                "precscope.policy_scope"
            )
        return f"{'; '.join(parts)}."


def apply_policy(model: Any, policy: Policy | str | os.PathLike[str], *, optimizer: Any = None) -> AppliedPolicy:
    """Give the layers of a built model the policies that `policy` says, and the optimizer what it needs.

    Weights, the optimizer's slots, its count of iterations and a loss scale that has begun to move are kept. `fit`,
    `evaluate` and `predict` are traced anew; a tf.function of your own has to be made anew.

    Args:
        model: A built Keras model, compiled or not.
        policy: A file that `precscope policy` or `precscope verify` wrote, or a policy that was read.
        optimizer: The optimizer of a custom training loop; train with the one that the result holds.

    Raises:
        PolicyError: The file cannot be read, it was made for another model, a name in it matches no layer or two, or
            a layer cannot be given its policy. The model is untouched then.
    """
    if not isinstance(model, keras.Model):
        raise PolicyError(f"precscope.apply_policy expects a keras.Model, received {type(model).__name__}.")
    policy = policy if isinstance(policy, Policy) else read_policy(policy)
    wanted, left = wanted_policies(model, policy)
    layers = model_layers(model)
    changed = {name: new for name, new in wanted.items() if own_policy(layers[name]).name != new}
    with ExitStack() as undone_on_failure:
        undone_on_failure.callback(set_layer_policies(model, changed))
        not_saved = _let_be_saved(layers, policy.default, undone_on_failure)
        trained_with, wrapped, initial_scale = _give_optimizer(model, policy, optimizer, undone_on_failure)
        undone_on_failure.pop_all()
    forget_traced_functions(model)
    return AppliedPolicy(changed, trained_with, wrapped, left, not_saved, initial_scale)


def wanted_policies(model: Any, policy: Policy) -> tuple[dict[str, str], dict[str, str]]:
    """Return the policy of each layer of `model` by id, and why sub-layers of pinned ones stay as they are.

    Layers that do not compute in floating point are left out.

    Raises:
        PolicyError: As `apply_policy`.
    """
    _check_names_of_policies(policy)
    layers = model_layers(model)
    there = {name: type(layer).__name__ for name, layer in layers.items() if name != MODEL}
    try:
        here = {MODEL: MODEL, **match_layers(policy, there)}
    except PolicyError as error:
        if model.built:
            raise
        raise PolicyError(f"{error} The model is not built yet: call it on a batch first.") from None
    wanted = dict.fromkeys(layers, policy.default) | {here[kept.layer]: kept.policy for kept in policy.kept}
    pinned = {here[pin.layer]: pin.policy for pin in policy.pins}
    for name, pin_policy in pinned.items():
        if name != MODEL:  # its own policy casts what it is fed, and nothing else
            wanted.update((inside, pin_policy) for inside in with_sublayers(model, [name]) if inside not in pinned)
    wanted |= pinned
    _pin_attention_alike(model, layers, wanted)
    return _settable(layers, wanted, pinned)


def _settable(
    layers: Mapping[str, Any], wanted: Mapping[str, str], pinned: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Leave out what needs no change or cannot be changed; raise where a layer that is named cannot."""
    settable: dict[str, str] = {}
    left: dict[str, str] = {}
    for name, policy in wanted.items():
        layer = layers[name]
        if layer.compute_dtype not in FORMATS or isinstance(layer, keras.layers.InputLayer):
            continue
        same = own_policy(layer).name == policy
        reason = None if same else cannot_flip(layer, policy)
        if reason is None:
            settable[name] = policy
        elif name in pinned or not _lies_in(name, pinned):
            raise PolicyError(
                f"Layer {name!r} cannot be given the policy {policy!r}: {reason}. The model is untouched."
            )
        else:
            left[name] = reason
    return settable, left


def _lies_in(name: str, pinned: Mapping[str, str]) -> bool:
    return any(name.startswith(f"{pin}/") for pin in pinned)


def _pin_attention_alike(model: Any, layers: Mapping[str, Any], wanted: dict[str, str]) -> None:
    """Give softmax and dropout of an attention layer one policy: a saved model can hold no two of them.

    Both have no path that a DTypePolicyMap could name. The wider one is right for both.
    """
    for name, layer in layers.items():
        if name == MODEL or not isinstance(layer, keras.layers.MultiHeadAttention | keras.layers.GroupQueryAttention):
            continue
        inside = [sub for sub in layers if sub.startswith(f"{name}/") and not layers[sub].path]
        if any(wanted[sub] == "float32" for sub in inside):
            wanted.update(dict.fromkeys(inside, "float32"))


def _let_be_saved(layers: Mapping[str, Any], default: str, undone_on_failure: ExitStack) -> tuple[str, ...]:
    """Let the owners' configurations carry what they can; return the layers off the default that are not carried."""
    carried: dict[str, bool] = {}
    for name, layer in layers.items():
        carried[name], undo = set_saved_policies(layer)
        undone_on_failure.callback(undo)
    return tuple(
        name
        for name, layer in layers.items()
        if name != MODEL
        and layer.compute_dtype in FORMATS
        and not isinstance(layer, keras.layers.InputLayer)
        and own_policy(layer).name != default
        and not all(carried[owner] for owner in _owners(name, layers))
    )


def _owners(name: str, layers: Mapping[str, Any]) -> list[str]:
    found = [MODEL]
    while "/" in name:
        name = name.rpartition("/")[0]
        if name in layers:
            found.append(name)
    return found


def _give_optimizer(
    model: Any, policy: Policy, given: Any, undone_on_failure: ExitStack
) -> tuple[Any, bool, float | None]:
    """Return the optimizer with what the policy needs, whether it was wrapped, and a loss scale that was set."""
    needs = policy.optimizer
    optimizer = given if given is not None else getattr(model, "optimizer", None)
    if optimizer is None or not needs.loss_scale_optimizer:
        return optimizer, False, None
    scale = needs.initial_scale
    if is_dynamic(optimizer):
        has_begun = int(optimizer.iterations.numpy()) > 0 or not _has_not_moved(optimizer)
        if scale is None or has_begun or scale == optimizer.initial_scale:
            return optimizer, False, None
        set_initial_scale(optimizer, scale)
        return optimizer, False, scale
    if given is not None:
        return wrapped_optimizer(optimizer, scale), True, scale
    undone_on_failure.callback(wrap_optimizer(model, scale))
    return model.optimizer, True, scale


def _has_not_moved(optimizer: Any) -> bool:
    """Tell whether a dynamic scale is where it began: after skipped steps it has learned something."""
    return not optimizer.built or float(optimizer.dynamic_scale.numpy()) == float(optimizer.initial_scale)


def _check_names_of_policies(policy: Policy) -> None:
    for name in {policy.default, *(pin.policy for pin in policy.pins), *(kept.policy for kept in policy.kept)}:
        try:
            keras.dtype_policies.get(name)
        except (ValueError, TypeError) as error:
            raise PolicyError(f"Keras knows no dtype policy {name!r}, which the policy names: {error}") from None
