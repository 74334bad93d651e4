"""What in a layer's own code a finding may come from: the ops that lint saw while the step was traced."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precscope.advice.finding import SEVERITIES

if TYPE_CHECKING:
    from precscope.advice.evidence import Evidence
    from precscope.advice.finding import Action, Finding
    from precscope.lint_result import LintFinding

__all__ = ["with_risks"]

#: Findings that say that a layer's forward pass leaves its format or loses digits: an op of that pass is the cause.
_FORWARD_RULES = (
    "activation_headroom",
    "activation_overflow",
    "cast_overflow",
    "measured_break",
    "measured_error",
    "nonfinite_origin",
)
#: A gradient is lost in the ops of the forward pass run backwards: of these the derivatives leave the format as well.
_BACKWARD_RULES = ("measured_backward_error", "gradient_overflow")
_STEEP_OPS = ("float16_log", "float16_pow", "float16_reciprocal", "float16_rsqrt", "small_epsilon", "constant_vanishes")
#: What lint says of a constant: another one helps as well as float32 does.
_CONSTANTS = ("constant_overflows", "constant_vanishes", "small_epsilon")
#: A last layer that ends in one of these may be left out, with a loss on logits.
_LAST_OPS = ("float16_softmax", "float16_logsoftmax")
_MOST = 3


def with_risks(evidence: Evidence, finding: Finding) -> Finding:
    """Return the finding with what lint saw in its layer, and with the constant to change where that would do."""
    risks = _risks(evidence, finding)
    if not risks:
        return finding
    alternative = finding.alternative
    if alternative is None and finding.action in ("keep_float32", "fix_layer"):
        alternative = _alternative(evidence, finding, risks)
    return replace(finding, risks=risks, alternative=alternative)


def _risks(evidence: Evidence, finding: Finding) -> tuple[LintFinding, ...]:
    if finding.layer is None or finding.action == "none":
        return ()
    of_layer = [item for item in evidence.run.lint if item.layer == finding.layer]
    if finding.id in _BACKWARD_RULES:
        of_layer = [item for item in of_layer if item.check in _STEEP_OPS]
    elif finding.id not in _FORWARD_RULES and finding.id != "output_in_16_bits":
        return ()
    return tuple(sorted(of_layer, key=lambda item: SEVERITIES.index(item.severity))[:_MOST])


def _alternative(evidence: Evidence, finding: Finding, risks: tuple[LintFinding, ...]) -> Action | None:
    checks = {item.check for item in risks}
    if checks.intersection(_CONSTANTS):
        return "change_constant"
    is_last = finding.layer is not None and not evidence.graph.consumers(finding.layer)
    return "from_logits" if is_last and checks.intersection(_LAST_OPS) else None
