"""All configurations, in the order of the docs."""

from __future__ import annotations

import re
from importlib import import_module

from tests.compatibility.configuration import CONFIGURATIONS, Configuration

__all__ = ["rows"]

MODULES = (
    "applications",
    "keras_hub_models",
    "attention_models",
    "recurrent_models",
    "composed_models",
    "train_steps",
    "training_loops",
    "fit_options",
    "optimizers_and_activations",
)
for module in MODULES:  # each registers what it defines
    import_module(f"tests.compatibility.{module}")


def rows(pattern: str = "", extended: bool = False) -> list[tuple[Configuration, str]]:
    """Return configurations and policies whose "group/name/policy" holds the pattern; further members if `extended`."""
    return [
        (configuration, policy)
        for configuration in CONFIGURATIONS.values()
        for policy in configuration.policies
        if (extended or not configuration.extended)
        and re.search(pattern, f"{configuration.group}/{configuration.name}/{policy}")
    ]
