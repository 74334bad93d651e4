"""What `precscope lint` finds in a model that was built and not trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from precscope.json_text import json_text

if TYPE_CHECKING:
    from precscope.advice.finding import Severity

__all__ = ["UNWRITTEN_MEMORY", "LintFinding", "LintResult", "lint_json"]

#: The check for kernels whose result depends on what lay in memory before; a rule asks for it by name.
UNWRITTEN_MEMORY = "bfloat16_cudnn_rnn"


@dataclass(frozen=True)
class LintFinding:
    """One thing that may go wrong.

    Attributes:
        check: Name of the check.
        severity: "error" (training will be harmed), "warning" (it may be) or "info".
        layer: Id of the layer; None where it concerns the whole model.
        sentence: What was found and what it does.
        advice: What to do.
        place: The user's line that does it ("train.py:12: y = tf.exp(x)"); None where it is Keras' own or unknown.
    """

    check: str
    severity: Severity
    layer: str | None
    sentence: str
    advice: str
    place: str | None = None


@dataclass(frozen=True)
class LintResult:
    """What was found in one model.

    Attributes:
        model: Its name.
        layers: Number of its layers.
        float16_layers: How many of them compute in float16.
        findings: Worst first, in the order of the layers.
        not_checked: What could not be looked at, and why.
    """

    model: str
    layers: int
    float16_layers: int
    findings: tuple[LintFinding, ...]
    not_checked: tuple[str, ...]

    @property
    def worst(self) -> Literal["error", "warning", "info"] | None:
        """The worst severity; None where nothing was found."""
        return self.findings[0].severity if self.findings else None


def lint_json(result: LintResult) -> str:
    """Return the result as JSON."""
    return json_text("precscope-lint", 1, result)
