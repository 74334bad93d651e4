"""Rules about kernels that are wrong whatever the numbers are."""

# ruff: noqa: D401 - a rule's docstring says what is wrong with a run; docs/rules.md is made from it.
from __future__ import annotations

from typing import TYPE_CHECKING

from precscope.advice.finding import Finding, Number
from precscope.advice.wording import quoted
from precscope.lint_result import UNWRITTEN_MEMORY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.advice.evidence import Evidence

__all__ = ["unwritten_memory"]


def unwritten_memory(evidence: Evidence) -> Iterator[Finding]:
    """An LSTM or GRU was computed by cuDNN in bfloat16, whose backward pass does not write its gradients.

    What lay in the GPU's memory before is taken for them. On an H100 (TensorFlow 2.21, `benchmarks/cudnn_rnn.py`) the
    output was right, while all gradients were NaN where free memory had been filled with NaN, and off by 100 % and
    more where it had been filled with zeros: then the layer does not learn, and nobody notices. float32 and float16
    were right each time, and `use_cudnn=False` does without cuDNN. A run that looks well is not safe. Keep the layer
    in float32, or let it compute in float16.
    """
    for item in evidence.run.lint:
        if item.check != UNWRITTEN_MEMORY or item.layer is None:
            continue
        bad = evidence.bad("gradient", item.layer) | evidence.bad("weight_gradient", item.layer)
        harmed = int(bad.sum())
        seen = (
            f"its gradients held infinities or NaN in {harmed} of {len(evidence.samples)} sampled steps"
            if harmed
            else "they were finite in all sampled steps, which does not make them right"
        )
        yield Finding(
            id="unwritten_memory",
            layer=item.layer,
            severity="error" if harmed else "warning",
            confidence="observed" if harmed else "predicted",
            action="keep_float32",
            numbers={"sampled steps with bad gradients": Number(harmed, 0)},
            sentence=(
                f"cuDNN computes {quoted(item.layer)} in bfloat16 and leaves its gradients unwritten: what lay in "
                f"memory is taken for them, be it NaN, garbage or zeros; {seen}. float16 and use_cudnn=False are not "
                "affected."
            ),
            risks=(item,),
        )
