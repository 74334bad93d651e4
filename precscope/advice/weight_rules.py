"""Rules about weights: already lost, or no longer moving."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from precscope.advice.finding import Finding, Number
from precscope.advice.wording import counted, listed, quoted, share
from precscope.formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.advice.evidence import Evidence

__all__ = ["bad_weights", "lost_updates", "odd_sizes"]

_TENSOR_CORE_MULTIPLE = 8  # elements of 16 bits; NVIDIA's guide to tensor cores


def bad_weights(evidence: Evidence) -> Iterator[Finding]:
    """Weights held infinities or NaN before the step computed anything.

    An earlier update brought them in; from then on nothing that a layer puts out means anything. Go back to weights
    from before that step. If an activation or a gradient was seen to overflow earlier, that is the cause.
    """
    samples = np.flatnonzero(evidence.any_bad("weight"))
    if not len(samples):
        return
    first = int(samples[0])
    layers = [layer.id for layer in evidence.layers if evidence.bad("weight", layer.id)[first]]
    step = evidence.step(first)
    when = "when the session began" if step == 0 else f"by step {step:,}"
    others = f" and of {counted(len(layers) - 1, 'more layer')}" if len(layers) > 1 else ""
    yield Finding(
        id="bad_weights",
        layer=layers[0],
        severity="error",
        confidence="observed",
        action="restore_weights",
        numbers={"layers": Number(len(layers)), "sampled steps": Number(len(samples), 0)},
        sentence=f"The weights of {quoted(layers[0])}{others} already held infinities or NaN {when}.",
    )


def lost_updates(evidence: Evidence) -> Iterator[Finding]:
    """Weights did not move although their gradient was not zero.

    The update is smaller than half the distance to the next number that the weight's format holds, so weight +
    update == weight. A warning for weights in 16 bits: keep the variables in float32 (`mixed_bfloat16`,
    `mixed_float16`), or learn faster. For float32 weights only a remark, since converged weights hardly move.
    """
    found: dict[str, float] = {}
    narrow: dict[str, float] = {}
    for tensor in evidence.tensors("weight"):
        updates = evidence.total(evidence.counts("updates"), [tensor])
        lost = evidence.total(evidence.counts("lost_updates"), [tensor])
        if updates and lost / updates > evidence.thresholds.lost_updates_share:
            shares = narrow if FORMATS[tensor.dtype].bits <= 16 else found
            shares[tensor.layer] = max(shares.get(tensor.layer, 0.0), lost / updates)
    for shares, is_narrow in ((narrow, True), (found, False)):
        if not shares:
            continue
        worst = max(shares, key=lambda name: shares[name])
        others = f"; so did {counted(len(shares) - 1, 'more layer')}" if len(shares) > 1 else ""
        yield Finding(
            id="lost_updates",
            layer=worst,
            severity="warning" if is_narrow else "info",
            confidence="observed",
            action="float32_variables" if is_narrow else "none",
            numbers={"lost updates": Number(shares[worst], evidence.thresholds.lost_updates_share, "share")},
            sentence=(
                f"{quoted(worst)} lost {share(shares[worst])} of its updates: they are too small to move its "
                f"{'16-bit' if is_narrow else 'float32'} weights{others}."
            ),
        )


def odd_sizes(evidence: Evidence) -> Iterator[Finding]:
    """Kernels of 16-bit layers have sizes that are no multiple of 8.

    Tensor cores multiply 16-bit numbers in blocks of 8, and fall back to slower ways, or pad, where sizes do not fit. A
    matter of speed, not of precision, and only mentioned: on a GPU, for kernels of two or more dimensions whose inputs
    or outputs do not divide by 8. Choose units, filters and vocabulary sizes that do, where they are free to choose.
    """
    if not evidence.record.hardware.get("gpus"):
        return
    narrow = {layer.id for layer in evidence.layers if FORMATS.get(layer.compute_dtype, FORMATS["float32"]).bits == 16}
    found: dict[str, tuple[int, ...]] = {}
    for tensor in evidence.tensors("weight"):
        sizes = tuple(size for size in (tensor.shape or ())[-2:] if size is not None)
        is_kernel = tensor.layer in narrow and "kernel" in tensor.name and len(sizes) == 2
        if is_kernel and any(size % _TENSOR_CORE_MULTIPLE for size in sizes):
            found.setdefault(tensor.layer, sizes)
    if found:
        first = next(iter(found))
        yield Finding(
            id="odd_sizes",
            layer=None,
            severity="info",
            confidence="observed",
            action="pad_to_8",
            numbers={"layers": Number(len(found))},
            sentence=(
                f"The kernels of {listed(list(found))} have sizes that are no multiple of {_TENSOR_CORE_MULTIPLE} "
                f"({quoted(first)}: {found[first][0]:,} x {found[first][1]:,}): tensor cores are then slower."
            ),
        )
