"""Rules about the loss scale: steps that were skipped, a scale that sinks, an optimizer that has none."""

# ruff: noqa: D401 - a rule's docstring says what is wrong with a run; docs/rules.md is made from it.
from __future__ import annotations

import math
from typing import TYPE_CHECKING

from precscope.advice.finding import Action, Finding, Number, Severity
from precscope.advice.measured import is_broken
from precscope.advice.questions import is_input, overflowing_inputs
from precscope.advice.readers import float16_readers, readers_of
from precscope.advice.wording import counted, listed, plain, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.advice.evidence import Evidence
    from precscope.advice.sources import Source

__all__ = ["loss_scale_floor", "skipped_steps", "unwrapped_optimizer"]

#: So many single skips say nothing, whatever share of a short run they are.
_FEW_SKIPS = 3


def loss_scale_floor(evidence: Evidence) -> Iterator[Finding]:
    """The loss scale fell below 1.

    Keras halves the scale at each step whose gradients overflow and knows no lower limit: some hundred bad steps take
    it to 0, and the next good step divides by it and turns all weights into NaN. A scale below 1 helps no gradient.
    Stop, and mend the layer that overflows at any scale.
    """
    lowest, floor = evidence.skips.lowest_scale, evidence.thresholds.loss_scale_floor
    if lowest is None or lowest >= floor or evidence.loss_scaling == "static":
        return
    yield Finding(
        id="loss_scale_floor",
        layer=None,
        severity="error",
        confidence="observed",
        action="stop_training",
        numbers={"lowest loss scale": Number(lowest, floor), "skipped steps": Number(evidence.skips.skipped)},
        sentence=(
            f"The loss scale fell to {plain(lowest)}. It has no lower limit: at 0 the next update turns every weight "
            f"into NaN."
        ),
    )


def skipped_steps(evidence: Evidence) -> Iterator[Finding]:
    """The optimizer skipped steps because a gradient was not finite.

    A dynamic loss scale grows until a gradient overflows, skips that step and halves itself: a single skip now and
    then, from which training recovers, is how it finds its scale, and is healthy; so is the first descent from the
    initial scale. Several skips in a row later on, a large share of all steps, or a scale that keeps sinking mean that
    something overflows at every scale, or that the data are at fault. Where a sampled step was among them, the layer
    nearest the loss whose gradient overflowed is named: keep it in float32, and the layers that read its output; or the
    layer that makes that gradient, where a reference step saw it break by itself, or break a loss that it adds, and
    wherever the layer that gets the gradient computes in float32, which no gradient outgrows. If training recovered,
    and above a scale of 1, a lower initial scale is enough. Steps skipped because weights are spoiled ask for good
    weights.
    """
    skips = evidence.skips
    if not skips.skipped or evidence.loss_scaling in ("none", "static"):
        return
    severity = _judge(evidence)
    limit = evidence.thresholds.skips_error if severity == "error" else evidence.thresholds.skips_warning
    source = _cause(evidence)
    action = "none" if severity == "info" else _cure(evidence, source)
    pinned = action == "keep_float32" and source is not None
    breaking = _breaking_backward(evidence, source) if pinned and source else None
    yield Finding(
        id="skipped_steps",
        layer=breaking or (source.layer if source and action not in ("none", "restore_weights") else None),
        severity=severity,
        confidence="observed",
        action=action,
        numbers={
            "skipped in a row, at least": Number(skips.longest_run, limit),
            "share of all steps": Number(skips.skipped / skips.seen, evidence.thresholds.skipped_share, "share"),
            "scale fallen since half-time": Number(
                skips.sunk_bits if math.isfinite(skips.sunk_bits) else None,
                evidence.thresholds.sunk_warning_bits,
                "bits",
            ),
        },
        sentence=_told(evidence, severity, source, breaking, spoiled=action == "restore_weights"),
        consumers=_readers(evidence, source) if pinned and source and not breaking else (),
    )


def unwrapped_optimizer(evidence: Evidence) -> Iterator[Finding]:
    """Layers compute in float16, but the optimizer does not scale the loss.

    Small gradients then become zero and nobody is told. Keras wraps the optimizer by itself only under a global
    `mixed_float16` policy: not with per-layer policies, nor with a DTypePolicyMap. Wrap it:
    `keras.optimizers.LossScaleOptimizer(optimizer)`.
    """
    layers = [layer.id for layer in evidence.layers if layer.compute_dtype == "float16" and layer.parameters]
    if evidence.loss_scaling != "none" or not layers:
        return
    yield Finding(
        id="unwrapped_optimizer",
        layer=None,
        severity="warning",
        confidence="observed",
        action="wrap_optimizer",
        numbers={"float16 layers with weights": Number(len(layers), 0)},
        sentence=(
            f"The optimizer does not scale the loss, yet {counted(len(layers), 'layer')} with weights compute in "
            f"float16 ({listed(layers)}): small gradients become zero unnoticed."
        ),
    )


def _judge(evidence: Evidence) -> Severity:
    limits, skips, stretches = evidence.thresholds, evidence.skips, evidence.skipped_stretches
    if any(stretch.cause in ("collapse", "any_scale", "bad_weights") for stretch in stretches):
        return "error"
    # The first search for a level takes as many skips as it takes, and a scale that grows every so many steps is probed
    # as often.
    usual = {"search", "probe"} if evidence.record.model.get("loss_scale_growth_steps") else {"search"}
    searched = sum(stretch.skipped for stretch in stretches if stretch.cause in usual)
    rows = [stretch.in_row for stretch in stretches if stretch.cause != "search"]
    longest = max(rows, default=0) if stretches else skips.longest_run
    if longest >= limits.skips_error:
        return "error"
    counted_skips = (skips.skipped or 0) - searched
    many = counted_skips > _FEW_SKIPS and counted_skips > limits.skipped_share * skips.seen
    sinking = skips.sunk_bits >= limits.sunk_warning_bits and counted_skips > 0
    at_fault = any(stretch.cause == "bad_batch" for stretch in stretches) and longest >= limits.skips_warning
    return "warning" if many or sinking or at_fault or longest >= limits.skips_warning else "info"


def _readers(evidence: Evidence, source: Source) -> tuple[str, ...]:
    return readers_of(evidence, source) if evidence.forward_sources else float16_readers(evidence, source.layer)


def _breaking_backward(evidence: Evidence, source: Source) -> str | None:
    """Return the float16 layer that made the bad gradient at the source, given an exact one; None if none is known.

    A gradient that arrives at a layer is what the backward passes of its readers made.
    """
    if evidence.forward_sources:
        return None
    readers = [evidence.graph.by_id[name] for name in evidence.graph.consumers(source.layer)]
    narrow = [reader.id for reader in readers if reader.compute_dtype == "float16"]
    seen = [name for name in narrow if _was_seen_to_break(evidence, name)]
    if not seen and len(narrow) == 1 and evidence.graph.by_id[source.layer].compute_dtype == "float32":
        return narrow[0]
    return next(iter(seen), None)


def _was_seen_to_break(evidence: Evidence, layer: str) -> bool:
    measured = evidence.measured
    return measured.breaks_loss(layer) or any(map(is_broken, measured.own(layer, "gradient")))


def _cause(evidence: Evidence) -> Source | None:
    """Return what overflowed in the sampled steps: forward before backward, the most frequent of several."""
    sources = evidence.forward_sources or evidence.backward_sources
    return max(sources, key=lambda source: len(source.samples), default=None)


def _cure(evidence: Evidence, source: Source | None) -> Action:
    if _weights_were_spoiled(evidence) and not evidence.forward_sources:
        return "restore_weights"
    recovered = _recovered(evidence) and not evidence.scale_collapsed
    if source is None:
        return "lower_loss_scale" if recovered else "sample_more"
    is_float16 = evidence.graph.by_id[source.layer].compute_dtype == "float16"
    if not is_float16 and _breaking_backward(evidence, source) is None:
        return "fix_layer"
    given = overflowing_inputs(evidence, evidence.graph.by_id[source.layer])
    if evidence.forward_sources and any(is_input(evidence.graph.by_id[tensor.layer]) for tensor in given):
        return "scale_input"
    if evidence.forward_sources or source.layer in evidence.graph.outputs() or not recovered:
        return "keep_float32"
    return "lower_loss_scale"


def _why_harmless(evidence: Evidence) -> str:
    if not evidence.forward_finite.all():
        return ", as they must be where the forward pass is not finite"
    if evidence.skips.unrecovered:
        return "; none was seen since, so whether training goes on is not known"
    last = evidence.skips.last_scale
    if last is not None and last <= 1:
        return f" until the loss scale had fallen to {plain(last)}, which scales nothing"
    return " while the loss scale sought its level: healthy"


def _recovered(evidence: Evidence) -> bool:
    return not evidence.skips.unrecovered and evidence.skips.sunk_bits < evidence.thresholds.sunk_warning_bits


def _weights_were_spoiled(evidence: Evidence) -> bool:
    """Tell whether steps were skipped since weights are not finite; a scale of 0 spoils them too, but in its wake."""
    floor = evidence.thresholds.loss_scale_floor
    return any(
        spoiled and sample.applied is False and (sample.loss_scale or 0.0) >= floor
        for spoiled, sample in zip(evidence.any_bad("weight"), evidence.samples, strict=True)
    )


def _told(evidence: Evidence, severity: Severity, source: Source | None, breaking: str | None, *, spoiled: bool) -> str:
    skips = evidence.skips
    amount = (
        f"The optimizer skipped {skips.skipped:,} of {skips.seen:,}{' sampled' if skips.sampled_only else ''} steps"
    )
    if severity == "info":
        return f"{amount}{_why_harmless(evidence)}."
    row = f", at least {skips.longest_run:,} in a row" if 1 < skips.longest_run < skips.seen else ""
    text = f"{amount}{row}; {_outcome(evidence)}."
    if spoiled:
        return f"{text} Weights that are not finite are the cause: see the other findings."
    if source is None:
        return f"{text} No sampled step was among them, so the layer is not known."
    direction = "output" if evidence.forward_sources else "gradient"
    maker = "" if breaking is None else f": {quoted(breaking)} makes it so of a finite one"
    return f"{text} The {direction} of {quoted(source.layer)} overflowed first{maker}."


def _outcome(evidence: Evidence) -> str:
    skips = evidence.skips
    if skips.unrecovered == skips.seen:
        return "nothing was learned"
    if skips.unrecovered:
        return f"the last {skips.unrecovered:,} seen are among them"
    return "training then went on" if _recovered(evidence) else "the loss scale was still falling at the end"
