"""Rules about activations: where they overflow, and where they soon might."""

# ruff: noqa: D401 - a rule's docstring says what is wrong with a run; docs/rules.md is made from it.
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from precscope.advice.finding import Action, Finding, Number
from precscope.advice.questions import (
    float16_consumers,
    is_input,
    nonfinite_numbers,
    outputs_of,
    overflowing_inputs,
)
from precscope.advice.wording import counted, of_samples, plain, quoted
from precscope.formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.advice.evidence import Evidence
    from precscope.advice.sources import Source
    from precscope.records import LayerRecord

__all__ = ["activation_headroom", "activation_overflow"]

_FLOAT16 = FORMATS["float16"]


def activation_overflow(evidence: Evidence) -> Iterator[Finding]:
    """A layer turned finite input and finite weights into infinities or NaN.

    The source, not the victims: layers that were already given something infinite or NaN are left out, however much
    of it they pass on. In float16 the layer's values outgrew the format: keep it in float32, and where its output
    is infinite also the layers that read it, for they would cast it back to float16. In bfloat16 and float32, which
    reach equally far, the format is not the cause: look for a division by zero, a logarithm of zero or a learning
    rate that is too high. Where a layer's input was not recorded and its output holds NaN alone, the data are
    suspected first.
    """
    for source in evidence.forward_sources:
        layer = evidence.graph.by_id[source.layer]
        if not is_input(layer) and not overflowing_inputs(evidence, layer):
            yield _overflow(evidence, source, layer)


def activation_headroom(evidence: Evidence) -> Iterator[Finding]:
    """A float16 activation comes close to the largest number that float16 holds.

    Headroom is log2(largest float16 number / largest magnitude seen), in bits: with 1 bit left the values may double
    once more. Keep the layer in float32, and the layers that read its output, for they would cast it back.
    """
    limits = evidence.thresholds
    peaks = {layer.id: _peak(evidence, layer.id) for layer in evidence.layers}
    bits = {name: _FLOAT16.headroom_bits(peak) for name, peak in peaks.items()}
    close = {name: b for name, b in bits.items() if b is not None and b < limits.headroom_warning_bits}
    for name in sorted(evidence.graph.innermost(close), key=lambda name: close[name]):
        is_error = close[name] < limits.headroom_error_bits
        yield Finding(
            id="activation_headroom",
            layer=name,
            severity="error" if is_error else "warning",
            confidence="observed",
            action="keep_float32",
            numbers={
                "headroom": Number(
                    close[name], limits.headroom_error_bits if is_error else limits.headroom_warning_bits, "bits"
                ),
                "largest output": Number(peaks[name], _FLOAT16.max),
            },
            sentence=(
                f"{quoted(name)} comes within {close[name]:.1f} bits of overflow: its output reaches "
                f"{plain(peaks[name] or 0.0)}, and float16 ends at {plain(_FLOAT16.max)}."
            ),
            consumers=float16_consumers(evidence, name),
        )


def _overflow(evidence: Evidence, source: Source, layer: LayerRecord) -> Finding:
    in_float16 = layer.compute_dtype == "float16" or bool(outputs_of(evidence, [layer.id], "float16"))
    numbers = nonfinite_numbers(evidence, source)
    infinite = bool(numbers["infinities"].value)
    first = int(source.samples[0])
    where = of_samples(len(source.samples), len(evidence.samples), evidence.step(first))
    passed_on = _victims(evidence, layer, first)
    parts = [
        f"{quoted(layer.id)} is where it breaks: its output held {'infinities' if infinite else 'NaN'} {where}",
        ", although its input was finite." if source.saw_input else ". Its input was not recorded: check the data too.",
        f" {counted(passed_on, 'later layer')} only passed this on." if passed_on else "",
        "" if in_float16 else f" {layer.compute_dtype} reaches as far as float32: the format is not the cause.",
    ]
    return Finding(
        id="activation_overflow",
        layer=layer.id,
        severity="error",
        confidence="observed",
        action=_cure(source, in_float16=in_float16, infinite=infinite),
        numbers=numbers,
        sentence="".join(parts),
        consumers=float16_consumers(evidence, layer.id) if in_float16 and infinite else (),
    )


def _cure(source: Source, *, in_float16: bool, infinite: bool) -> Action:
    if not source.saw_input and not infinite:
        return "fix_data"
    if source.layer.startswith("("):  # code between layers has no policy
        return "fix_layer"
    return "keep_float32" if in_float16 else "fix_layer"


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
