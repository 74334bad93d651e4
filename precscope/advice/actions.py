"""What to do about a finding, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precscope.advice.wording import listed
from precscope.origin_records import is_code_id

if TYPE_CHECKING:
    from precscope.advice.finding import Action, Finding

__all__ = ["advise"]

_ADVICE: dict[Action, str] = {
    "use_bfloat16": "Use mixed_bfloat16: it has the range of float32.",
    "raise_loss_scale": "Raise the loss scale (LossScaleOptimizer's initial_scale).",
    "lower_loss_scale": "Lower the initial loss scale (LossScaleOptimizer's initial_scale).",
    "wrap_optimizer": "Wrap the optimizer: keras.optimizers.LossScaleOptimizer(optimizer).",
    "float32_variables": "Keep the variables in float32, with a mixed_… policy.",
    "fix_data": "Check the data: missing values, divisions by zero, values that need scaling.",
    "fix_layer": "Look at the layer itself: division by zero, logarithm of zero, too high a learning rate.",
    "restore_weights": "Go back to weights from before, and mend the cause first.",
    "sample_more": "Record again with tripwire=True, which keeps the first such step and names the layer.",
    "stop_training": "Stop the training and mend what overflows.",
    "none": "Nothing to do.",
}


def advise(*findings: Finding) -> str:
    """Return what to do about findings that share an action, as one sentence."""
    if findings[0].action != "keep_float32":
        return _ADVICE[findings[0].action]
    layers = list(dict.fromkeys(finding.layer for finding in findings if finding.layer is not None))
    consumers = dict.fromkeys(name for finding in findings for name in finding.consumers)
    readers = [name for name in consumers if name not in layers and not is_code_id(name)]
    verb, object = ("reads" if len(readers) == 1 else "read"), ("it" if len(layers) == 1 else "them")
    also = f", with {listed(readers)} that {verb} {object}" if readers else ""
    return f"Keep {listed(layers, most=6)} in float32{also}."
