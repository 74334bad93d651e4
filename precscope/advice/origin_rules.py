"""A rule about where the run turned non-finite, in a step that no sample saw."""

# ruff: noqa: D401 - a rule's docstring says what is wrong with a run; docs/rules.md is made from it.
from __future__ import annotations

from typing import TYPE_CHECKING

from precscope.advice.finding import Action, Finding, Number
from precscope.advice.origin_account import main_origin, origin_sentence
from precscope.advice.readers import float16_readers
from precscope.formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.advice.evidence import Evidence
    from precscope.origin_records import OriginRecord

__all__ = ["nonfinite_origin"]


def nonfinite_origin(evidence: Evidence) -> Iterator[Finding]:
    """A step that no sample saw turned non-finite, and the tripwire kept it.

    The step was run again, and the first layer that turned finite values into infinities or NaN is known. Without a
    dynamic loss scale the weights were lost in that step, so that later samples show nothing but the damage. In float16
    keep the layer in float32; in bfloat16 and float32, which reach equally far, mend the layer itself.
    """
    origin = main_origin(evidence.run.origins)
    if origin is None or origin.noticed_by != "tripwire" or origin.step in {s.step for s in evidence.samples}:
        return
    if evidence.loss_scaling == "dynamic" and origin.direction == "backward":
        return  # a scale that was too high: the rule about skipped steps judges that
    if any(source.layer == origin.layer for source in evidence.forward_sources):
        return  # samples saw it as well, and the rule about activations tells of it
    layer = origin.layer if origin.layer in evidence.graph.by_id else None
    action = _action(evidence, origin)
    frame = origin.frames[-1] if origin.frames else None
    yield Finding(
        id="nonfinite_origin",
        layer=layer if action == "keep_float32" else None,
        severity="error",
        confidence="observed",
        action=action,
        numbers={"infinities or NaN": Number(None if frame is None else frame.nonfinite, 0)},
        sentence=f"{origin_sentence(origin)} No sampled step saw that; the tripwire kept it.",
        consumers=float16_readers(evidence, layer) if layer and action == "keep_float32" else (),
    )


def _action(evidence: Evidence, origin: OriginRecord) -> Action:
    if origin.cause == "data":
        return "fix_data"
    layer = evidence.graph.by_id.get(origin.layer or "")
    if layer is None or origin.cause not in ("layer", "loss"):
        return "fix_layer"
    narrow = layer.compute_dtype in FORMATS and FORMATS[layer.compute_dtype].max <= FORMATS["float16"].max
    return "keep_float32" if narrow else "fix_layer"
