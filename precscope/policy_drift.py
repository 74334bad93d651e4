"""Where the dtype policies that a run's layers had depart from a policy file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precscope.advice.wording import quoted
from precscope.formats import FORMATS
from precscope.layer_match import match_layers
from precscope.origin_records import is_code_id

if TYPE_CHECKING:
    from precscope.policy import Policy
    from precscope.reader import Run
    from precscope.records import LayerRecord

__all__ = ["policy_drift"]


def policy_drift(run: Run, policy: Policy) -> tuple[str, ...]:
    """Return what of the run is not as `policy` has it, in words, in the order of the layers; empty where all is.

    A pin covers what the layer owns. Inputs, and layers that do not compute in floating point, are left out: their
    policies say nothing.

    Raises:
        PolicyError: The policy was made for another model.
    """
    layers = [layer for layer in run.layers if not is_code_id(layer.id)]
    here = match_layers(policy, {layer.id: layer.type for layer in layers})
    pins = {here[pin.layer]: pin.policy for pin in policy.pins if pin.layer in here}
    kept = {here[entry.layer]: entry.policy for entry in policy.kept if entry.layer in here}
    found = []
    for layer in layers:
        expected = _expected(layer, policy.default, pins, kept)
        if _counts(layer) and layer.policy != expected:
            found.append(f"{quoted(layer.id)} had {layer.policy}, the file has {expected}")
    if policy.optimizer.loss_scale_optimizer and run.record.model.get("loss_scaling") == "none":
        found.append("the loss was not scaled, the file asks for LossScaleOptimizer")
    return tuple(found)


def _expected(layer: LayerRecord, default: str, pins: dict[str, str], kept: dict[str, str]) -> str:
    owners = [layer.id]
    while "/" in owners[-1]:
        owners.append(owners[-1].rpartition("/")[0])
    # The nearest pin is the one that is set last; a pin on the layer's owner goes before what was kept.
    pinned = next((pins[owner] for owner in owners if owner in pins), None)
    return pinned or kept.get(layer.id, default)


def _counts(layer: LayerRecord) -> bool:
    return layer.type != "InputLayer" and layer.compute_dtype in FORMATS
