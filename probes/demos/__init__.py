"""Small real trainings that `precscope demo` runs, one module each.

A demo's module has `build(policy)`, which returns a compiled Keras model, `load_data()`, which returns `DemoData`, and
`build_for_bench()`, which returns a model in the global policy and a dataset. Importing this package loads no
framework.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from precscope.errors import OptionsError

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["BENCH_STEPS", "DEMOS", "POLICIES", "DemoData", "load_demo"]

#: The demos by name, with the module that holds each.
DEMOS: dict[str, str] = {name: f"precscope.probes.demos.{name}" for name in ("mnist", "resnet18", "lstm")}

#: The dtype policies that a demo can train in; the first is the default.
POLICIES: tuple[str, ...] = ("mixed_float16", "mixed_bfloat16", "float32")

#: Steps in a round of a demo's bench, so that it ends within minutes on two CPU cores, where ResNet-18 takes seconds.
BENCH_STEPS: dict[str, int] = {"mnist": 100, "resnet18": 5, "lstm": 20}


@dataclass(frozen=True)
class DemoData:
    """What a demo trains on and is judged on.

    Attributes:
        description: What the data are and where they come from, one or two sentences.
        x: Training inputs, float32 [examples, ...].
        y: Training labels or targets, [examples, ...].
        x_test: Held-out inputs, shaped like `x`.
        y_test: Held-out labels or targets.
        epochs: How often the demo goes over `x` by default, so that it ends within minutes.
    """

    description: str
    x: NDArray[np.float32]
    y: NDArray[Any]
    x_test: NDArray[np.float32]
    y_test: NDArray[Any]
    epochs: int


def load_demo(name: str) -> ModuleType:
    """Return the module of the demo called `name`.

    Raises:
        OptionsError: There is no such demo.
    """
    if name not in DEMOS:
        raise OptionsError(f"Unknown demo {name!r}. Expected one of: {', '.join(DEMOS)}.")
    return import_module(DEMOS[name])
