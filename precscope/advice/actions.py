"""What to do about a finding, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precscope.advice.wording import listed
from precscope.origin_records import is_code_id

if TYPE_CHECKING:
    from precscope.advice.finding import Action, Finding

__all__ = ["advise"]

_ADVICE: dict[Action, str] = {
    "change_constant": (
        "Give the layer a constant that float16 can hold: an epsilon of 1e-3, a mask of -30,000, a clip below 65,504."
    ),
    "from_logits": "Let the loss work on logits: leave the last activation out, with from_logits=True.",
    "scale_input": "Scale the input data into the range of float16, to about 1; or keep the layer in float32.",
    "pad_to_8": "Choose sizes that are multiples of 8, where they are free to choose.",
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
    alternative = findings[0].alternative
    otherwise = "" if alternative is None else f" Or: {_ADVICE[alternative][:1].lower()}{_ADVICE[alternative][1:]}"
    if findings[0].action != "keep_float32":
        return _ADVICE[findings[0].action] + otherwise
    layers = list(dict.fromkeys(finding.layer for finding in findings if finding.layer is not None))
    consumers = dict.fromkeys(name for finding in findings for name in finding.consumers)
    readers = [name for name in consumers if name not in layers and not is_code_id(name)]
    verb, object = ("reads" if len(readers) == 1 else "read"), ("it" if len(layers) == 1 else "them")
    also = f", with {listed(readers)} that {verb} {object}" if readers else ""
    return f"Keep {listed(layers, most=6)} in float32{also}.{otherwise}"
