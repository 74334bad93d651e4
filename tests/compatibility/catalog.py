"""All configurations, in the order of the docs."""

from __future__ import annotations

# Each import registers what its module defines.
from tests.compatibility import (  # noqa: I001
    applications as _applications,
    keras_hub_models as _keras_hub_models,
    attention_models as _attention_models,
    recurrent_models as _recurrent_models,
    composed_models as _composed_models,
    train_steps as _train_steps,
    fit_options as _fit_options,
    optimizers_and_activations as _optimizers_and_activations,
)
from tests.compatibility.configuration import CONFIGURATIONS, Configuration

__all__ = ["rows"]


def rows(pattern: str = "", extended: bool = False) -> list[tuple[Configuration, str]]:
    """Return configurations and policies whose "group/name/policy" holds the pattern; further members if `extended`."""
    import re

    found = []
    for configuration in CONFIGURATIONS.values():
        if configuration.extended and not extended:
            continue
        for policy in configuration.policies:
            if re.search(pattern, f"{configuration.group}/{configuration.name}/{policy}"):
                found.append((configuration, policy))
    return found
