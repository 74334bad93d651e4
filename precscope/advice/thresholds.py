"""Where a number becomes a finding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Thresholds"]


def _threshold(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Thresholds:
    """The limits that rules compare with; each is shown beside the value that met it.

    A share of tiny values alone is no fault, for most of them do not matter. So a share becomes a warning only
    together with a bound on how far the whole gradient can have turned.
    """

    headroom_warning_bits: float = _threshold(2.0, "Warn when fewer bits are left below the format's largest number.")
    headroom_error_bits: float = _threshold(1.0, "Error when fewer bits are left.")
    singular_bits: float = _threshold(
        6.0, "Infinities whose finite neighbours all have more bits of headroom come from a division by zero or so."
    )
    subnormal_share_info: float = _threshold(0.05, "Mention a gradient with a larger share of subnormal values.")
    subnormal_share_warning: float = _threshold(0.5, "Warn when a larger share is subnormal and the cosine is low.")
    gradient_cosine: float = _threshold(0.999, "Warn when the gradient's cosine to the exact one may be lower.")
    flushed_share: float = _threshold(0.01, "Warn when a larger share was flushed (measured) and the cosine is low.")
    flushed_share_error: float = _threshold(0.1, "Error when a larger share was flushed.")
    cosine_error: float = _threshold(0.99, "Error when a measured cosine is lower.")
    own_error: float = _threshold(0.05, "Warn when a layer's own relative error is larger.")
    gradient_error: float = _threshold(0.05, "No harm while the gradient of all weights is off by less.")
    negligible_gradient: float = _threshold(
        1e-4, "The gradient of a variable does not matter where it has a smaller share of the length of all of them."
    )
    output_gradient_error: float = _threshold(
        0.15, "Warn when rounding the model's output turns the gradient of the loss there by a larger share."
    )
    output_tiny_share: float = _threshold(0.01, "Warn when a larger share of output probabilities is below normal.")
    lost_updates_share: float = _threshold(0.5, "Warn when a larger share of 16-bit weights did not move.")
    skips_warning: int = _threshold(3, "Warn after this many skipped steps in a row.")
    skips_error: int = _threshold(10, "Error after this many skipped steps in a row.")
    skipped_share: float = _threshold(0.05, "Warn when a larger share of all steps was skipped (and over three).")
    sunk_warning_bits: float = _threshold(3.0, "Warn when the loss scale halved so often in the run's second half.")
    loss_scale_floor: float = _threshold(1.0, "Error when the loss scale falls below.")
