"""Rules about the model's output and the loss."""

# ruff: noqa: D401 - a rule's docstring says what is wrong with a run; docs/rules.md is made from it.
from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from precscope.advice.finding import Finding, Number
from precscope.advice.questions import outputs_of
from precscope.advice.rounding_rules import harmful_rounding
from precscope.advice.wording import of_samples, quoted, share
from precscope.formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.advice.evidence import Evidence
    from precscope.records import TensorRecord

__all__ = ["loss_not_finite", "output_in_16_bits"]


def loss_not_finite(evidence: Evidence) -> Iterator[Finding]:
    """The loss was infinite or NaN although every recorded activation and weight was finite.

    Then it broke in the loss function: a loss computed from a 16-bit output (keep that layer in float32), or labels
    and sample weights that are not finite (check the data). Or in a loss that a layer adds in its call: where a
    reference step saw that, the layer is named by *measured_break*.
    """
    losses = [sample.loss for sample in evidence.samples]
    bad = np.array([loss is not None and not math.isfinite(loss) for loss in losses], bool)
    samples = np.flatnonzero(bad & evidence.forward_finite)
    if not len(samples) or any(evidence.measured.breaks_loss(layer.id) for layer in evidence.layers):
        return
    low = [name for name in evidence.graph.outputs() if _in_16_bits(evidence, name)]
    where = of_samples(len(samples), len(losses), evidence.step(int(samples[0])))
    cause = f"which is given the 16-bit output of {quoted(low[0])}" if low else "or the labels are not finite"
    yield Finding(
        id="loss_not_finite",
        layer=low[0] if low else None,
        severity="error",
        confidence="observed",
        action="keep_float32" if low else "fix_data",
        numbers={"sampled steps": Number(len(samples), 0)},
        sentence=(
            f"The loss was infinite or NaN {where}, although all recorded activations were finite: it broke in the "
            f"loss function, {cause}."
        ),
    )


def output_in_16_bits(evidence: Evidence) -> Iterator[Finding]:
    """The model's last layer computes in 16 bits, so the loss is computed from rounded values.

    Keras advises float32 for a model's output. Only a remark, unless there is evidence of harm: a float16 softmax
    with many probabilities that are zero or subnormal, at which the gradient of the loss also overflowed, and that at
    a loss scale no higher than the one it began with. Then keep it in float32, or let the loss work on logits
    (`from_logits=True`).
    """
    limit = evidence.thresholds.output_tiny_share
    for name in evidence.graph.outputs():
        tensors = _in_16_bits(evidence, name)
        if not tensors:
            continue
        tiny = max(_tiny_probabilities(evidence, tensor) for tensor in tensors)
        harmed = tiny > limit and _overflowed_early(evidence, name)
        if harmed:
            detail = f"{share(tiny)} of its probabilities are zero or subnormal, and its gradient overflowed."
        elif _holds_nonfinite(evidence, tensors):
            detail = "It held infinities or NaN: see the other findings."
        elif harmful_rounding(evidence, name) is not None:
            detail = "Its rounding is a large part of the loss: see the other findings."
        else:
            detail = "No harm was seen."
        yield Finding(
            id="output_in_16_bits",
            layer=name,
            severity="warning" if harmed else "info",
            confidence="observed",
            action="keep_float32" if harmed else "none",
            alternative="from_logits" if harmed else None,
            numbers={"tiny probabilities": Number(tiny, limit, "share")} if tiny else {},
            sentence=f"The model's output {quoted(name)} is {tensors[0].dtype}; Keras advises float32. {detail}",
        )


def _overflowed_early(evidence: Evidence, layer: str) -> bool:
    """Return whether a gradient began to overflow here without the loss scale having grown."""
    first = evidence.skips.first_scale
    samples = [int(i) for source in evidence.backward_sources if source.layer == layer for i in source.samples]
    scales = [evidence.samples[sample].loss_scale for sample in samples]
    return any(first is None or scale is None or scale <= first for scale in scales)


def _holds_nonfinite(evidence: Evidence, tensors: list[TensorRecord]) -> bool:
    kinds = ("positive_infinities", "negative_infinities", "nans")
    return any(evidence.total(evidence.counts(kind), tensors) for kind in kinds)


def _in_16_bits(evidence: Evidence, layer: str) -> list[TensorRecord]:
    return [tensor for tensor in outputs_of(evidence, [layer]) if FORMATS[tensor.dtype].bits == 16]


def _tiny_probabilities(evidence: Evidence, tensor: TensorRecord) -> float:
    """Return the share of zero or subnormal values where the tensor's last axis is a distribution, else 0."""
    rows = np.flatnonzero(evidence.finite[:, tensor.index])
    low, high, mean = (evidence.values(name)[rows, tensor.index] for name in ("min", "max", "mean"))
    classes = tensor.shape[-1] if tensor.shape else None
    if not len(rows) or not classes or low.min() < 0 or high.max() > 1:
        return 0.0
    # Rows that sum to 1 have the mean 1 / classes; 2 % leave room for rounding to 8 bits and for partial sums.
    if abs(float(np.average(mean, weights=evidence.finite[rows, tensor.index])) * classes - 1) > 0.02:
        return 0.0
    tiny = evidence.counts("zeros") + evidence.counts("subnormals")
    return evidence.total(tiny, [tensor]) / evidence.total(evidence.finite, [tensor])
