"""The loss is scaled where it must be, and only there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from precscope.advice.wording import counted, listed
from precscope.lint_result import LintFinding
from precscope.probes.internals.layer_tree import own_variables
from precscope.probes.internals.optimizers import loss_scaling

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["check_loss_scaling"]


def check_loss_scaling(layers: Mapping[str, Any], optimizer: Any) -> Iterator[LintFinding]:
    """Yield float16 layers whose loss nobody scales, and a loss scale that no layer needs."""
    if optimizer is None:
        return
    narrow = [
        layer_id for layer_id, layer in layers.items() if layer.compute_dtype == "float16" and own_variables(layer)
    ]
    scaling = loss_scaling(optimizer)
    if narrow and scaling == "none":
        yield LintFinding(
            "unwrapped_optimizer",
            "error",
            None,
            f"{counted(len(narrow), 'layer')} with weights compute in float16 ({listed(narrow)}), but the loss is not "
            "scaled: small gradients become zero unnoticed. Keras wraps the optimizer by itself only under a global "
            "mixed_float16 policy, not with policies of single layers nor with a DTypePolicyMap.",
            "compile(optimizer=keras.optimizers.LossScaleOptimizer(optimizer), ...)",
        )
    if scaling != "none" and not any(layer.compute_dtype == "float16" for layer in layers.values()):
        yield LintFinding(
            "needless_loss_scaling",
            "info",
            None,
            "The loss is scaled, but no layer computes in float16: bfloat16 and float32 have room enough for small "
            "gradients, so the scale buys nothing and may skip steps.",
            "Give the inner optimizer to compile, without LossScaleOptimizer and loss_scale_factor.",
        )
