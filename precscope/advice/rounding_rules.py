"""Rules about rounding that is as small as ever and matters all the same: what comes after it makes much of it."""

# ruff: noqa: D401 - a rule's docstring says what is wrong with a run; docs/rules.md is made from it.
from __future__ import annotations

import math
from typing import TYPE_CHECKING

from precscope.advice.finding import Finding, Number
from precscope.advice.measured import is_broken, moment_of, own_flushed
from precscope.advice.measured_rules import measured_error
from precscope.advice.wording import quoted, share
from precscope.formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.advice.evidence import Evidence
    from precscope.reference_records import ReferenceRecord

__all__ = ["amplified_rounding", "harmful_rounding", "output_rounding"]


def amplified_rounding(evidence: Evidence) -> Iterator[Finding]:
    """A layer that needs float32 reads the output of a 16-bit layer, whose rounding alone is too much for it.

    Measured by a reference step: the layer in float32, given the exact input rounded to 16 bits, still puts out
    something else. A difference of two large numbers does that, and a softmax of large ones. So float32 inside it
    cures nothing as long as what it reads was rounded on the way: the layers that hand it over are kept in float32 with
    it, and those before them where rounding their input comes to as much at its output.
    """
    named = {finding.layer for finding in measured_error(evidence) if finding.severity != "info"}
    seen = set(named)
    for reader in [layer.id for layer in evidence.layers if layer.id in named]:
        pending = [(reader, 1.0)]
        while pending:
            name, factor = pending.pop()
            worst = max(evidence.measured.of(name, "activation"), key=_rounded_error, default=None)
            if worst is None or factor * _rounded_error(worst) <= evidence.thresholds.own_error:
                continue
            error = factor * _rounded_error(worst)
            for giver in _narrow_givers(evidence, name):
                if _only_rounds(evidence, giver):
                    pending.append((giver, error / _usual_rounding(evidence, giver)))
                if giver not in seen:
                    seen.add(giver)
                    yield _amplified(evidence, giver, reader, error, worst)


def output_rounding(evidence: Evidence) -> Iterator[Finding]:
    """The rounding of the model's output to 16 bits is a large part of what the loss sees.

    Measured by a reference step: the gradient of the loss at the output is off, and most of the output's error is the
    last layer's own. An output around 1,000 is rounded to steps of 4 in bfloat16, which is nothing beside its value and
    may be more than all that is left to learn. Rounding adds its square to a squared error, so an error of 15 % of the
    gradient is 2 % of the loss. Only where the gradients of all weights are off, too.
    """
    limits = evidence.thresholds
    for name in evidence.graph.outputs():
        worst = harmful_rounding(evidence, name)
        if worst is None:
            continue
        harm, error = evidence.measured.harm(worst), worst.relative_error or 0.0
        dtype = evidence.graph.by_id[name].compute_dtype
        yield Finding(
            id="output_rounding",
            layer=name,
            severity="error" if error > 3 * limits.output_gradient_error else "warning",
            confidence="measured",
            action="keep_float32",
            numbers={
                "error of the loss's gradient": Number(error, limits.output_gradient_error, "share"),
                "error of all weight gradients": Number(harm, limits.gradient_error, "share"),
            },
            sentence=(
                f"Rounding the model's output {quoted(name)} to {dtype} turns the gradient of the loss there by "
                f"{share(error)} of its length (step {worst.step:,}): the steps of {dtype} are coarse beside what is "
                f"left to learn."
            ),
        )


def harmful_rounding(evidence: Evidence, output: str) -> ReferenceRecord | None:
    """Return the gradient at a 16-bit output that the output's rounding turns most; None where that does no harm."""
    if evidence.graph.by_id[output].compute_dtype not in ("float16", "bfloat16"):
        return None
    limits = evidence.thresholds
    rounded = [r for r in evidence.measured.of(output, "gradient") if _is_of_rounded_output(evidence, r)]
    worst = max(rounded, key=lambda record: record.relative_error or 0.0, default=None)
    if worst is None or (worst.relative_error or 0.0) <= limits.output_gradient_error:
        return None
    harm = evidence.measured.harm(worst)
    return worst if harm is not None and limits.gradient_error < harm < math.inf else None


def _amplified(evidence: Evidence, giver: str, reader: str, error: float, worst: ReferenceRecord) -> Finding:
    limits, dtype = evidence.thresholds, evidence.graph.by_id[giver].compute_dtype
    return Finding(
        id="amplified_rounding",
        layer=giver,
        severity="error" if error > 3 * limits.own_error else "warning",
        confidence="measured",
        action="keep_float32",
        numbers={"error from rounding": Number(error, limits.own_error, "share")},
        sentence=(
            f"What {quoted(giver)} hands over is rounded to {dtype}, and that alone puts {quoted(reader)} off by "
            f"{share(error)} (step {worst.step:,}), in float32 too."
        ),
    )


def _rounded_error(record: ReferenceRecord) -> float:
    return record.rounded_input_relative_error or 0.0


def _narrow_givers(evidence: Evidence, name: str) -> list[str]:
    producers = evidence.graph.producers(name)
    return [giver for giver in producers if evidence.graph.by_id[giver].compute_dtype in ("float16", "bfloat16")]


def _only_rounds(evidence: Evidence, layer: str) -> bool:
    """Tell whether a layer's output lies within its format; else rounding is not what its readers suffer from."""
    outputs = evidence.measured.own(layer, "activation")
    return not any(is_broken(r) or own_flushed(r) > evidence.thresholds.flushed_share for r in outputs)


def _usual_rounding(evidence: Evidence, layer: str) -> float:
    """Return the relative error, in the root mean square, of rounding to the layer's format.

    Steps of s round by s / sqrt(12), and the numbers between 1 and 2 are sqrt(7 / 3) large, in the root mean square.
    """
    step = math.ldexp(1.0, -FORMATS[evidence.graph.by_id[layer].compute_dtype].mantissa_bits)
    return step / math.sqrt(12 * 7 / 3)


def _is_of_rounded_output(evidence: Evidence, gradient: ReferenceRecord) -> bool:
    """Tell whether the output's error at which a gradient was taken is the last layer's own for the most part."""
    if gradient.overflowed or gradient.nans:
        return False
    if gradient.flushed > evidence.thresholds.flushed_share * max(gradient.reference_nonzero, 1):
        return False  # a matter of the loss scale
    return any(
        (output.own_relative_error or 0.0) ** 2 > 0.5 * (output.relative_error or 0.0) ** 2
        for output in evidence.measured.own(gradient.layer, "activation")
        if moment_of(output) == moment_of(gradient) and output.name == gradient.name
    )
