"""Rules about the data, and about what is cast to float16 on its way into a layer."""

# ruff: noqa: D401 - a rule's docstring says what is wrong with a run; docs/rules.md is made from it.
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from precscope.advice.finding import Finding, Number
from precscope.advice.questions import is_input, nonfinite_numbers, overflowing_inputs
from precscope.advice.sources import Source
from precscope.advice.wording import listed, of_samples, plain, quoted
from precscope.formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.advice.evidence import Evidence

__all__ = ["bad_input", "cast_overflow"]


def bad_input(evidence: Evidence) -> Iterator[Finding]:
    """The data held infinities or NaN.

    Seen at an input layer, before any layer computed. No layer's precision can mend that: look for missing values and
    divisions by zero in the data pipeline.
    """
    for layer in evidence.layers:
        samples = np.flatnonzero(evidence.bad("activation", layer.id))
        if is_input(layer) and len(samples):
            where = of_samples(len(samples), len(evidence.samples), evidence.step(int(samples[0])))
            yield Finding(
                id="bad_input",
                layer=layer.id,
                severity="error",
                confidence="observed",
                action="fix_data",
                numbers=nonfinite_numbers(evidence, Source(layer.id, samples)),
                sentence=f"The data are bad: the input {quoted(layer.id)} held infinities or NaN {where}.",
            )


def cast_overflow(evidence: Evidence) -> Iterator[Finding]:
    """A value beyond the float16 range is cast to float16 on its way into a layer.

    A layer that computes in float16 casts what it is given; beyond float16's largest number that yields infinity
    before the layer's own work begins. Where the value comes from the data, scale the data. Where it comes from a
    layer that computes in a wider format, keep the layer that reads it in float32 as well. An error where the
    layer's output was seen to be infinite or NaN, a warning where it was not.
    """
    limit = FORMATS["float16"].max
    for layer in evidence.layers:
        tensors = overflowing_inputs(evidence, layer)
        if not tensors:
            continue
        givers = list(dict.fromkeys(tensor.layer for tensor in tensors))
        from_data = any(is_input(evidence.graph.by_id[name]) for name in givers)
        largest = evidence.highest(tensors) or 0.0
        seen = bool(evidence.bad("activation", layer.id).any())
        yield Finding(
            id="cast_overflow",
            layer=layer.id,
            severity="error" if seen else "warning",
            confidence="observed" if seen else "predicted",
            action="scale_input" if from_data else "keep_float32",
            numbers={"largest input": Number(largest, limit)},
            sentence=(
                f"{quoted(layer.id)} is given values up to {plain(largest)} by {listed(givers)} and casts them to "
                f"float16, which ends at {plain(limit)}: they become infinite."
            ),
        )
