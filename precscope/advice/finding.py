"""What a rule says: a finding, with the numbers that caused it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from precscope.lint_result import LintFinding

__all__ = ["SEVERITIES", "Action", "Confidence", "Finding", "Number", "Severity"]

Severity = Literal["info", "warning", "error"]
#: "measured" against a float32 reference step, "predicted" from a histogram, or "observed" in the low-precision run.
Confidence = Literal["measured", "predicted", "observed"]
Action = Literal[
    "keep_float32",
    "change_constant",
    "from_logits",
    "scale_input",
    "pad_to_8",
    "use_bfloat16",
    "raise_loss_scale",
    "lower_loss_scale",
    "wrap_optimizer",
    "float32_variables",
    "fix_data",
    "fix_layer",
    "restore_weights",
    "sample_more",
    "stop_training",
    "none",
]

#: Worst first: the order in which findings are ranked and shown.
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


class Number(NamedTuple):
    """A value beside the threshold that it is judged by (None where it only informs).

    Its unit is "bits", "share" (of one), "cosine", or "" for a plain number.
    """

    value: float | int | None
    threshold: float | int | None = None
    unit: str = ""


@dataclass(frozen=True)
class Finding:
    """One thing that a rule found.

    Attributes:
        id: The rule's name.
        layer: Id of the layer where it begins, or None where it concerns the whole run.
        severity: "error" (training is being harmed), "warning" (it may be) or "info".
        confidence: How it is known.
        action: What to do.
        numbers: Values by name, in the order to show them.
        sentence: What happened, for a person; names may hold any character.
        consumers: Ids of layers that read this layer's output and take part in the action.
        alternative: What would help as well; None where nothing else is known to.
        risks: What in the layer's own code may be the cause, worst first.
    """

    id: str
    layer: str | None
    severity: Severity
    confidence: Confidence
    action: Action
    numbers: Mapping[str, Number] = field(hash=False)
    sentence: str
    consumers: tuple[str, ...] = ()
    alternative: Action | None = None
    risks: tuple[LintFinding, ...] = ()
