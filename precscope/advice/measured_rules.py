"""Rules about what a float32 reference step measured: a layer's own error before what it inherits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from precscope.advice.finding import Finding, Number
from precscope.advice.gradient_rules import cure_of_underflow
from precscope.advice.measured import (
    breaks_its_loss,
    is_broken,
    moment_of,
    own_cosine,
    own_flushed,
    whole_cosine,
    whole_flushed,
)
from precscope.advice.readers import reach_through
from precscope.advice.wording import counted, plain, quoted, share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from precscope.advice.evidence import Evidence
    from precscope.advice.finding import Severity
    from precscope.reference_records import ReferenceRecord

__all__ = ["measured_backward_error", "measured_break", "measured_error", "measured_underflow"]


def measured_break(evidence: Evidence) -> Iterator[Finding]:
    """Given exact input, a layer turns finite values into infinities or NaN.

    Measured by a reference step: the layer breaks by itself, in its own format, on the values that it would get if all
    layers before it were exact. So of a chain of layers that overflow each one that needs float32 is named, and none
    that only passes on what it was given. Only a remark where that did no harm: the layers that read it make the same
    of it as in float32, as a softmax does of the minus infinity of a mask, or the gradients of all weights agree.
    """
    for name in _innermost(evidence, is_broken):
        worst = max(
            filter(is_broken, evidence.measured.own(name, "activation")),
            key=lambda record: ((record.own_nans or 0), (record.own_overflowed or 0)),
        )
        harmless = _is_absorbed(evidence, name) or _did_no_harm(evidence, name, is_broken)
        bad = (worst.own_overflowed or 0) + (worst.own_nans or 0)
        yield Finding(
            id="measured_break",
            layer=name,
            severity="info" if harmless else "error",
            confidence="measured",
            action="none" if harmless else "keep_float32",
            numbers={
                "infinities and NaN": Number(bad, 0),
                "values": Number(worst.count),
                "error of all weight gradients": _harm_number(evidence, worst),
            },
            sentence=(
                f"Given exact input, {quoted(name)} turns {_what_broke(worst, bad)} into infinities or NaN "
                f"(step {worst.step:,})." + (" What follows is as in float32: harmless." if harmless else "")
            ),
        )


def measured_error(evidence: Evidence) -> Iterator[Finding]:
    """Given exact input, a layer puts out something else than it does in float32.

    Measured by a reference step. Rounding alone leaves an error of about 0.05 % in float16 and 0.4 % in bfloat16; far
    more than that means that the layer loses its values inside: whole numbers beyond 2,048, sums that stand still,
    squares that overflow and are divided by, statistics that are clipped, values that are flushed to zero. Nothing of
    it shows in the run, since every number is finite. What a layer inherits from those before it is not counted
    against it. Only a remark where the gradients of all weights agree with float32's all the same.
    """
    for name in _innermost(evidence, lambda record: _is_off(evidence, record)):
        worst = max(evidence.measured.own(name, "activation"), key=lambda record: record.own_relative_error or 0.0)
        harmless = _did_no_harm(evidence, name, lambda record: _is_off(evidence, record))
        yield _off(evidence, worst, harmless)


def measured_backward_error(evidence: Evidence) -> Iterator[Finding]:
    """Given an exact gradient, a layer hands on something else than it does in float32, at any loss scale.

    Measured by a reference step: the gradient that arrives is not too small for float16, but what the layer makes of it
    is lost, as behind a sigmoid that rounds to exactly 1, whose slope becomes zero; or parts of it overflow and others
    vanish at one and the same scale, so that none fits. A warning where the gradients of all weights are off, or where
    that cannot be measured because the layer breaks that reads this one. Else a remark: the gradient behind a saturated
    gate does not matter. A layer that reads one that has to be in float32, and makes infinities of its gradient at a
    scale that the training could not keep, belongs to it: small values have large gradients. The gradient of a variable
    that has next to no share in that of all is left out: that of a key's bias in attention is nothing but rounding.
    """
    yield from _overflowing_readers(evidence)
    broken = _innermost(evidence, is_broken)
    harmful_breaks = [finding.layer for finding in measured_break(evidence) if finding.severity != "info"]
    named = {*broken, *_innermost(evidence, lambda record: _is_off(evidence, record))}
    for layer in evidence.layers:
        own = [r for r in evidence.measured.own(layer.id, "gradient", "weight_gradient") if _is_lost(evidence, r)]
        if not own or layer.id in named or layer.id in evidence.graph.contents:
            continue
        worst = min(own, key=own_cosine)
        harm = evidence.measured.harm(worst)
        path = reach_through(evidence, layer.id, [name for name in harmful_breaks if name is not None])
        unknown = harm is None or math.isinf(harm)
        if harm is None or unknown:
            harmful = path is not None and worst.kind == "gradient"
        else:
            harmful = harm > evidence.thresholds.gradient_error
        yield _backward_finding(evidence, worst, (path or ()) if harmful else None, unknown)


def measured_underflow(evidence: Evidence) -> Iterator[Finding]:
    """Gradients are flushed to zero at the loss scale that the run ended with.

    Measured by a reference step: non-zero gradient values that are zero in float16. Many of them may be too small to
    matter, so it takes more than 1 % of them *and* a cosine to the float32 gradient below 0.999 for a warning, more
    than 10 % or a cosine below 0.99 for an error, and only where the gradients of all weights are off. A higher loss
    scale is the cure where all gradients have room for it, else bfloat16; not float32 layer by layer. Where a layer has
    an error of its own in the forward pass, zeros in the gradients behind it are a consequence, and are left out; so
    are those of a loss scale that fell below 1, for something else overflowed at every scale.
    """
    if not evidence.measured.steps or evidence.scale_collapsed:
        return
    last = evidence.measured.steps[-1]
    found = [
        record
        for layer in evidence.layers
        if layer.compute_dtype == "float16" and layer.id not in evidence.graph.contents
        for record in evidence.measured.of(layer.id, "gradient")
        if (record.step, record.moment) == (last.step, last.moment) and not record.overflowed and not record.nans
    ]
    limits = evidence.thresholds
    lost = [
        record
        for record in found
        if whole_flushed(record) > limits.flushed_share and whole_cosine(record) < limits.gradient_cosine
    ]
    if not lost:
        return
    worst = max(lost, key=whole_flushed)
    harm = evidence.measured.harm(worst)
    if (harm is not None and harm <= limits.gradient_error) or _has_forward_error(evidence):
        return
    severe = whole_flushed(worst) > limits.flushed_share_error or whole_cosine(worst) < limits.cosine_error
    others = len({record.layer for record in lost}) - 1
    yield Finding(
        id="measured_underflow",
        layer=worst.layer,
        severity="error" if severe else "warning",
        confidence="measured",
        action=cure_of_underflow(evidence),
        numbers={
            "flushed": Number(whole_flushed(worst), limits.flushed_share, "share"),
            "cosine": Number(whole_cosine(worst), limits.gradient_cosine, "cosine"),
            "loss scale": Number(last.loss_scale),
        },
        sentence=(
            f"{share(whole_flushed(worst))} of the gradient values at {quoted(worst.layer)} are zero in float16 "
            f"and not in float32, at a loss scale of {plain(last.loss_scale)}"
            + (f"; {counted(others, 'more layer')} above {share(limits.flushed_share)}." if others else ".")
        ),
    )


def _what_broke(record: ReferenceRecord, bad: int) -> str:
    if breaks_its_loss(record):
        return "the loss that it adds"
    return f"{counted(bad, 'finite value')} of {record.count:,}"


def _innermost(evidence: Evidence, is_bad: Callable[[ReferenceRecord], bool]) -> tuple[str, ...]:
    """Return the layers with a bad output of their own, without those that hold another of them."""
    named = [layer.id for layer in evidence.layers if any(map(is_bad, evidence.measured.own(layer.id, "activation")))]
    return evidence.graph.innermost(named)


def _is_off(evidence: Evidence, record: ReferenceRecord) -> bool:
    """Tell whether a layer's own output, all of it finite, is far from float32's."""
    limits = evidence.thresholds
    if is_broken(record) or not record.own_reference_nonzero:
        return False
    return own_cosine(record) < limits.gradient_cosine or (record.own_relative_error or 0.0) > limits.own_error


def _is_lost(evidence: Evidence, record: ReferenceRecord) -> bool:
    """Tell whether a layer's own backward pass loses a gradient that no loss scale could save."""
    limits = evidence.thresholds
    if record.kind == "weight_gradient" and evidence.measured.share_of_gradient(record) < limits.negligible_gradient:
        return False
    arriving = [r for r in evidence.measured.of(record.layer, "gradient") if moment_of(r) == moment_of(record)]
    if any(whole_flushed(r) > limits.flushed_share for r in arriving):
        return False
    # Where the policy's gradient is NaN, what its readers make of an exact one tells whether it arrives at all.
    makers = evidence.measured.of_all(evidence.graph.consumers(record.layer), "gradient")
    if any(own_flushed(r) > limits.flushed_share for r in makers if moment_of(r) == moment_of(record)):
        return False
    if is_broken(record):
        return own_flushed(record) > limits.flushed_share
    return own_cosine(record) < limits.cosine_error


def _backward_finding(
    evidence: Evidence,
    worst: ReferenceRecord,
    readers: tuple[str, ...] | None,
    unknown: bool,
    cure: str = "no loss scale can help",
) -> Finding:
    """Return the finding; `readers` are to be kept in float32 with the layer, None where it did no harm."""
    limits, harmful = evidence.thresholds, readers is not None
    what = "hands on" if worst.kind == "gradient" else f"gives {quoted(worst.name)}"
    broken = (worst.own_overflowed or 0) + (worst.own_nans or 0)
    harmless = " Whether that matters could not be measured." if unknown else " The gradients of all weights agree."
    return Finding(
        id="measured_backward_error",
        layer=worst.layer,
        severity="warning" if harmful else "info",
        confidence="measured",
        action="keep_float32" if harmful else "none",
        numbers={
            "flushed": Number(own_flushed(worst), limits.flushed_share, "share"),
            "infinities and NaN": Number(broken, 0),
            "cosine": Number(own_cosine(worst), limits.cosine_error, "cosine"),
            "error of all weight gradients": _harm_number(evidence, worst),
        },
        sentence=(
            f"Of an exact gradient, what {quoted(worst.layer)} {what} has a cosine of {own_cosine(worst):.3f} to "
            f"float32's (step {worst.step:,}), {share(own_flushed(worst))} of it zero, {counted(broken, 'value')} "
            f"infinite or NaN: {cure}." + ("" if harmful else harmless)
        ),
        consumers=readers or (),
    )


def _overflowing_readers(evidence: Evidence) -> Iterator[Finding]:
    """Yield the readers of layers that err in the forward pass whose own backward pass made the loss scale fall."""
    erring = {
        finding.layer
        for rule in (measured_break, measured_error)
        for finding in rule(evidence)
        if finding.severity != "info"
    }
    last = evidence.skips.last_scale or 0.0
    # Where the forward pass broke the loss, that is why the scale fell.
    too_high = {
        (step.step, step.moment)
        for step in evidence.measured.steps
        if step.loss_scale > last and step.loss_policy is not None and math.isfinite(step.loss_policy)
    }
    for layer in evidence.layers:
        broken = [
            record
            for record in evidence.measured.own(layer.id, "gradient")
            if is_broken(record) and moment_of(record) in too_high
        ]
        if broken and layer.id not in erring and erring.intersection(evidence.graph.producers(layer.id)):
            yield _backward_finding(evidence, broken[0], (), unknown=True, cure="the loss scale fell for its sake")


def _has_forward_error(evidence: Evidence) -> bool:
    """Tell whether a layer breaks, or errs, by itself in the forward pass, and that did harm."""
    rules = (measured_break, measured_error)
    return any(finding.severity != "info" for rule in rules for finding in rule(evidence))


def _is_absorbed(evidence: Evidence, name: str) -> bool:
    """Tell whether all that read a layer's infinities put out what they do in float32 all the same."""
    broken = [record for record in evidence.measured.own(name, "activation") if is_broken(record)]
    readers = evidence.graph.consumers(name)
    most = evidence.thresholds.own_error
    return bool(readers) and all(
        not record.own_nans
        and not breaks_its_loss(record)
        and all(evidence.measured.agrees(reader, record, most) for reader in readers)
        for record in broken
    )


def _did_no_harm(evidence: Evidence, name: str, is_bad: Callable[[ReferenceRecord], bool]) -> bool:
    """Tell whether the gradients of all weights agreed wherever they could be compared, at least once."""
    harms = [evidence.measured.harm(r) for r in evidence.measured.own(name, "activation") if is_bad(r)]
    known = [harm for harm in harms if harm is not None]
    return bool(known) and max(known) <= evidence.thresholds.gradient_error


def _harm_number(evidence: Evidence, record: ReferenceRecord) -> Number:
    harm = evidence.measured.harm(record)
    known = None if harm is None or math.isinf(harm) else harm
    return Number(known, evidence.thresholds.gradient_error, "share")


def _off(evidence: Evidence, record: ReferenceRecord, harmless: bool) -> Finding:
    limits = evidence.thresholds
    severe = own_cosine(record) < limits.cosine_error or (record.own_relative_error or 0.0) > 3 * limits.own_error
    flushed = own_flushed(record)
    severity: Severity = "info" if harmless else "error" if severe else "warning"
    return Finding(
        id="measured_error",
        layer=record.layer,
        severity=severity,
        confidence="measured",
        action="none" if harmless else "keep_float32",
        numbers={
            "own relative error": Number(record.own_relative_error, limits.own_error, "share"),
            "cosine": Number(own_cosine(record), limits.gradient_cosine, "cosine"),
            "flushed": Number(flushed, None, "share"),
            "error of all weight gradients": _harm_number(evidence, record),
        },
        sentence=(
            f"Given exact input, {quoted(record.layer)} is off by {share(record.own_relative_error or 0.0)} of what it "
            f"puts out in float32 (step {record.step:,})"
            + (f"; {share(flushed)} of its values became zero." if flushed > limits.flushed_share else ".")
            + (" The gradients of all weights agree with float32 all the same." if harmless else "")
        ),
    )
