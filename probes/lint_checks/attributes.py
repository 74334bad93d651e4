"""Attributes of layers that do not fit their format: epsilons that vanish, sizes that tensor cores cannot use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras

from precscope.advice.wording import listed, plain
from precscope.formats import FORMATS
from precscope.lint_result import LintFinding

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

__all__ = ["check_epsilons", "check_sizes"]

_FLOAT16 = FORMATS["float16"]
# Layers whose kernel ends in (inputs, outputs).
_MULTIPLIED = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_TENSOR_CORE_MULTIPLE = 8  # elements of 16 bits; NVIDIA's guide to tensor cores


def check_epsilons(layers: Mapping[str, Any], upcasting: Collection[str]) -> Iterator[LintFinding]:
    """Yield epsilons that are zero or subnormal in float16; layers that compute in float32 inside are left out."""
    for layer_id, layer in layers.items():
        if layer.compute_dtype != "float16" or layer_id in upcasting:
            continue
        for name, value in vars(layer).items():
            if "eps" not in name.lower() or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if 0 < abs(value) < _FLOAT16.smallest_normal:
                yield _vanishing(layer_id, name, abs(float(value)))


def _vanishing(layer_id: str, name: str, value: float) -> LintFinding:
    vanishes = value <= _FLOAT16.flush_limit
    fate = (
        "is zero in float16 and protects from nothing" if vanishes else "is subnormal in float16: few digits are left"
    )
    return LintFinding(
        "small_epsilon",
        "warning" if vanishes else "info",
        layer_id,
        f"{name}={plain(value)} {fate}.",
        f"Take {name}=1e-3 or larger, or keep the layer in float32.",
    )


def check_sizes(layers: Mapping[str, Any]) -> Iterator[LintFinding]:
    """Yield one finding on all 16-bit layers whose kernels have sizes that are no multiple of 8."""
    odd = [layer_id for layer_id, layer in layers.items() if _has_odd_size(layer)]
    if odd:
        yield LintFinding(
            "size_not_multiple_of_8",
            "info",
            None,
            f"Sizes of the kernels of {listed(odd, most=6)} are no multiple of {_TENSOR_CORE_MULTIPLE}: tensor cores "
            "need that in 16 bits, or pad.",
            "Choose units, filters and vocabulary sizes that are multiples of 8, where that is free to choose.",
        )


def _has_odd_size(layer: Any) -> bool:
    if layer.compute_dtype not in ("float16", "bfloat16") or not isinstance(layer, _MULTIPLIED) or not layer.built:
        return False
    return any(size % _TENSOR_CORE_MULTIPLE for size in layer.kernel.shape[-2:])
