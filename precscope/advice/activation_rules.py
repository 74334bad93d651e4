"""Rules about activations: where they overflow, and where they soon might."""

# ruff: noqa: D401 - a rule's docstring says what is wrong with a run; docs/rules.md is made from it.
from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from precscope.advice.finding import Action, Finding, Number
from precscope.advice.questions import (
    is_input,
    nonfinite_numbers,
    outputs_of,
    overflowing_inputs,
)
from precscope.advice.readers import float16_readers, outgrew_float16, readers_of
from precscope.advice.wording import counted, of_samples, plain, quoted
from precscope.formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.advice.evidence import Evidence
    from precscope.advice.sources import Source
    from precscope.records import LayerRecord

__all__ = ["activation_headroom", "activation_overflow"]

_FLOAT16 = FORMATS["float16"]
_FEWEST_SAMPLES = 4  # fewer do not tell whether a value moves


def activation_overflow(evidence: Evidence) -> Iterator[Finding]:
    """A layer turned finite input and finite weights into infinities or NaN.

    The source, not the victims: layers that were already given something infinite or NaN are left out, however much of
    it they pass on. In float16 the layer's values outgrew the format: keep it in float32, and where the true values lie
    beyond float16 also the layers that read it, for they would cast them back. Where all that is finite is far smaller,
    the infinity came from a division by zero or the logarithm of one: the readers are left alone, and a constant that
    float16 can hold helps as well. In bfloat16 and float32, which reach equally far, the format is not the cause: look
    for a division by zero, a logarithm of zero or a learning rate that is too high. Where a layer's input was not
    recorded and its output holds NaN alone, the data are suspected first. Minus infinities of which nothing is seen
    later, as those of a mask that a softmax turns into zeros, are only mentioned.
    """
    for source in evidence.forward_sources:
        layer = evidence.graph.by_id[source.layer]
        if not is_input(layer) and not overflowing_inputs(evidence, layer):
            yield _overflow(evidence, source, layer)


def activation_headroom(evidence: Evidence) -> Iterator[Finding]:
    """A float16 activation comes close to the largest number that float16 holds.

    Headroom is log2(largest float16 number / largest magnitude seen), in bits: with 1 bit left the values may double
    once more. Keep the layer in float32, and the layers that read its output, for they would cast it back. Only a
    remark where four or more samples show that it does not move: neither its growth from the first quarter of the run
    to the last, nor twice the spread of its largest value from sample to sample, would take it to the limit. One and
    the same largest value in all of them is a constant that somebody chose, as a mask is.
    """
    limits = evidence.thresholds
    peaks = {layer.id: _peak(evidence, layer.id) for layer in evidence.layers}
    bits = {name: _FLOAT16.headroom_bits(peak) for name, peak in peaks.items()}
    close = {name: b for name, b in bits.items() if b is not None and b < limits.headroom_warning_bits}
    for name in sorted(evidence.graph.innermost(close), key=lambda name: close[name]):
        is_error = close[name] < limits.headroom_error_bits
        reach = _reach_bits(evidence, name)
        stays = reach is not None and (reach < close[name] or reach == 0)
        movement = {} if reach is None else {"may move by": Number(reach, close[name], "bits")}
        yield Finding(
            id="activation_headroom",
            layer=name,
            severity="info" if stays else "error" if is_error else "warning",
            confidence="observed",
            action="none" if stays else "keep_float32",
            numbers={
                "headroom": Number(
                    close[name], limits.headroom_error_bits if is_error else limits.headroom_warning_bits, "bits"
                ),
                "largest output": Number(peaks[name], _FLOAT16.max),
                **movement,
            },
            sentence=(
                f"{quoted(name)} comes within {close[name]:.1f} bits of overflow: its output reaches "
                f"{plain(peaks[name] or 0.0)}, and float16 ends at {plain(_FLOAT16.max)}."
                + (" It has not moved towards the limit." if stays else "")
            ),
            consumers=() if stays else float16_readers(evidence, name),
        )


def _overflow(evidence: Evidence, source: Source, layer: LayerRecord) -> Finding:
    in_float16 = layer.compute_dtype == "float16" or bool(outputs_of(evidence, [layer.id], "float16"))
    numbers = nonfinite_numbers(evidence, source)
    infinite = bool(numbers["infinities"].value)
    first = int(source.samples[0])
    where = of_samples(len(source.samples), len(evidence.samples), evidence.step(first))
    passed_on = _victims(evidence, layer, first)
    harmless = not passed_on and _only_minus_infinity(evidence, source) and _losses_finite(evidence, source)
    parts = [
        f"{quoted(layer.id)} is where it breaks: its output held {'infinities' if infinite else 'NaN'} {where}",
        ", although its input was finite." if source.saw_input else ". Its input was not recorded: check the data too.",
        f" {counted(passed_on, 'later layer')} only passed this on." if passed_on else "",
        " Nothing after it was infinite or NaN: a mask does this on purpose." if harmless else "",
        "" if in_float16 else f" {layer.compute_dtype} reaches as far as float32: the format is not the cause.",
    ]
    return Finding(
        id="activation_overflow",
        layer=layer.id,
        severity="info" if harmless else "error",
        confidence="observed",
        action="none" if harmless else _cure(source, in_float16=in_float16, infinite=infinite),
        numbers=numbers,
        sentence="".join(parts),
        consumers=readers_of(evidence, source) if in_float16 and not harmless else (),
        alternative=_alternative(evidence, source) if in_float16 and not harmless else None,
    )


def _cure(source: Source, *, in_float16: bool, infinite: bool) -> Action:
    if not source.saw_input and not infinite:
        return "fix_data"
    if source.layer.startswith("("):  # code between layers has no policy
        return "fix_layer"
    return "keep_float32" if in_float16 else "fix_layer"


def _alternative(evidence: Evidence, source: Source) -> Action | None:
    """Return "change_constant" where an infinity or NaN is one that a constant made: an epsilon of 0, a mask."""
    masks = outgrew_float16(evidence, source) and _only_minus_infinity(evidence, source, nan_too=True)
    return "change_constant" if masks or not outgrew_float16(evidence, source) else None


def _only_minus_infinity(evidence: Evidence, source: Source, *, nan_too: bool = False) -> bool:
    outputs = outputs_of(evidence, [source.layer])
    others = ("positive_infinities",) if nan_too else ("positive_infinities", "nans")
    return not any(evidence.total(evidence.counts(kind), outputs, source.samples) for kind in others)


def _losses_finite(evidence: Evidence, source: Source) -> bool:
    losses = [evidence.samples[int(sample)].loss for sample in source.samples]
    return all(loss is None or math.isfinite(loss) for loss in losses)


def _victims(evidence: Evidence, layer: LayerRecord, sample: int) -> int:
    """Count the layers after `layer` that were bad in a sample; containers do not count."""
    later = [other.id for other in evidence.layers if other.order > layer.order]
    return sum(bool(evidence.bad("activation", name)[sample]) for name in later if name not in evidence.graph.contents)


def _peak(evidence: Evidence, layer: str) -> float | None:
    """Return the largest magnitude of the layer's float16 outputs in the samples where all of them was finite.

    None also for a layer that was seen to overflow: that is another rule's finding.
    """
    if any(source.layer == layer for source in evidence.forward_sources):
        return None
    finite = np.flatnonzero(~evidence.bad("activation", layer))
    return evidence.highest(outputs_of(evidence, [layer], "float16"), finite)


def _reach_bits(evidence: Evidence, layer: str) -> float | None:
    """Return by how many bits the layer's largest magnitude may be expected to move up; None with few samples."""
    tensors = outputs_of(evidence, [layer], "float16")
    finite = np.flatnonzero(~evidence.bad("activation", layer))
    peaks = [evidence.highest(tensors, finite[[index]]) for index in range(len(finite))]
    bits = np.array([math.log2(peak) for peak in peaks if peak])
    if len(bits) < _FEWEST_SAMPLES:
        return None
    quarter = len(bits) // 4
    growth = float(bits[-quarter:].max() - bits[:quarter].max())
    return max(growth, 0.0) + 2 * float(np.diff(bits).std())
