"""Finding the layers that a policy names in a model that was built again."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from precscope.advice.wording import listed
from precscope.errors import AnotherModelError, PolicyError
from precscope.keras_names import snake_case
from precscope.policy import MODEL
from precscope.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from precscope.policy import Policy

__all__ = ["match_layers", "without_numbers"]


def match_layers(policy: Policy, layers: Mapping[str, str]) -> dict[str, str]:
    """Return the id of each layer of `policy.made_for` in the model whose layers are `layers`.

    Layers are matched by id. Keras numbers the layers that nobody named ("dense_3") over the whole life of a process,
    so the same model built a second time has other numbers: where the two models are alike but for those, layers are
    matched by their order among equally named ones.

    Args:
        policy: The policy.
        layers: Class names by layer id, of the model at hand.

    Raises:
        PolicyError: A name in the policy matches nothing or two layers, or the policy was made for another model.
    """
    known = policy.made_for.layers
    if not known:  # written by hand: the names alone count
        matched = {name: name for name in layers}
    elif dict(known) == dict(layers):
        matched = {name: name for name in known}
    else:
        there, here = without_numbers(known), without_numbers(layers)
        if {name: known[layer] for name, layer in there.items()} != {
            name: layers[layer] for name, layer in here.items()
        }:
            raise _another_model(policy, layers)
        matched = {there[name]: here[name] for name in there}
    _check_names(policy, matched)
    return matched


def without_numbers(layers: Mapping[str, str]) -> dict[str, str]:
    """Return layer ids by what they would be, had Keras numbered each kind of layer from 0 in this model.

    Only names that Keras made are numbered anew: a layer's class in snake case, with or without a number behind it.
    """
    numbered: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for layer, type in layers.items():
        owner, _, name = layer.rpartition("/")
        match = re.fullmatch(rf"({re.escape(snake_case(type))})(?:_(\d+))?", name)
        if match:
            numbered[f"{owner}/{match[1]}"].append((int(match[2] or 0), layer))
    ranks = {layer: f"{rank}" for places in numbered.values() for rank, (_, layer) in enumerate(sorted(places))}
    return {_renumbered(layer, layers, ranks): layer for layer in layers}


def _renumbered(layer: str, layers: Mapping[str, str], ranks: Mapping[str, str]) -> str:
    """Return a path of which every part that Keras named carries its rank instead of Keras' number."""
    parts, path = [], ""
    for part in layer.split("/"):
        path = f"{path}/{part}" if path else part
        parts.append(f"{snake_case(layers[path])}#{ranks[path]}" if path in ranks else part)
    return "/".join(parts)


def _check_names(policy: Policy, matched: Mapping[str, str]) -> None:
    named = [pin.layer for pin in policy.pins] + [entry.layer for entry in policy.kept]
    for name, count in Counter(pin.layer for pin in policy.pins).items():
        if count > 1:
            raise PolicyError(f"The policy names layer {name!r} {count} times among its pins. Leave one of them.")
    for name in named:
        if name in matched or name == MODEL:
            continue
        ending = [layer for layer in matched if layer.endswith(f"/{name}")]
        if len(ending) > 1:
            raise PolicyError(
                f"The policy's layer {name!r} could be {listed(ending, most=4)}: {len(ending)} layers of the model "
                "match. Give the whole path."
            )
        hint = did_you_mean(name, matched)
        raise PolicyError(f"The policy's layer {name!r} matches no layer of the model.{hint}")


def _another_model(policy: Policy, layers: Mapping[str, str]) -> AnotherModelError:
    known = policy.made_for.layers
    missing = [name for name in known if name not in layers]
    added = [name for name in layers if name not in known]
    changed = [name for name in known if name in layers and known[name] != layers[name]]
    pinned = {pin.layer for pin in policy.pins}
    missing.sort(key=lambda name: name not in pinned)  # the pins first: they matter most
    differences = [
        text
        for text in (
            f"it lacks {listed(missing)}" if missing else "",
            f"it has {listed(added)} beside" if added else "",
            f"{listed(changed)} is of another class" if changed else "",
        )
        if text
    ]
    hint = did_you_mean(missing[0], layers) if missing and missing[0] in pinned else ""
    told = f"{' and '.join(differences)}.{hint}"
    return AnotherModelError(
        f"The policy was made for another model: {policy.made_for.model!r} ({policy.made_for.model_class}, "
        f"{len(known)} layers). Of the model at hand, with {len(layers)} layers, {told} "
        "Nothing was changed. Record a run of this model, and write its policy.",
        told,
    )
