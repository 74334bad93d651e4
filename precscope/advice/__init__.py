"""Advice: from a run that was read to findings, ranked by harm, and to the layers to keep in float32."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precscope.advice.evidence import Evidence
from precscope.advice.finding import SEVERITIES, Finding, Number
from precscope.advice.readers import pinnable
from precscope.advice.risks import with_risks
from precscope.advice.rules import RULES
from precscope.advice.thresholds import Thresholds
from precscope.origin_records import is_code_id

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precscope.reader import Run

__all__ = ["RULES", "Evidence", "Finding", "Number", "Thresholds", "analyze", "keep_float32"]


def analyze(run: Run | Evidence, thresholds: Thresholds | None = None) -> tuple[Finding, ...]:
    """Return what all rules find in `run`, worst first; causes come before their consequences."""
    evidence = run if isinstance(run, Evidence) else Evidence(run, thresholds)
    found = [with_risks(evidence, _for_layers(evidence, finding)) for rule in RULES for finding in rule(evidence)]
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def _for_layers(evidence: Evidence, finding: Finding) -> Finding:
    """Return the finding with layers that can be pinned in place of code between layers."""
    if finding.action != "keep_float32" or finding.layer is None:
        return finding
    layers = pinnable(evidence, (finding.layer, *finding.consumers))
    return replace(finding, layer=layers[0], consumers=layers[1:]) if layers else replace(finding, action="fix_layer")


def keep_float32(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Return the ids of the layers that warnings and errors say to keep in float32, worst first, each once."""
    pins = [f for f in findings if f.action == "keep_float32" and f.severity != "info" and f.layer is not None]
    named = (name.partition("/(")[0] for f in pins for name in (str(f.layer), *f.consumers))
    # Code between layers has no policy of its own; that inside a layer's call follows the layer's.
    return tuple(dict.fromkeys(name for name in named if not is_code_id(name)))
