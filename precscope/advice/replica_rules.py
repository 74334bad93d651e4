"""A rule about replicas: one that overflows alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from precscope.advice.finding import Finding, Number
from precscope.advice.wording import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.advice.evidence import Evidence
    from precscope.records import TensorKind, TensorRecord
    from precscope.replica_records import ReplicaSample

__all__ = ["lone_overflow"]

#: What each replica computed is read from the file a sample at a time; so many of those with infinities are looked at.
_MOST_SAMPLES = 32
_KINDS: tuple[TensorKind, ...] = ("activation", "gradient", "weight_gradient")


def lone_overflow(evidence: Evidence) -> Iterator[Finding]:
    """Infinities or NaN were in the step of some replicas, and the others had none.

    Their part of the batch differs, or their device computes wrongly. It is worse than it looks: under a strategy of
    TensorFlow, Keras' loss-scale optimizer decides by the gradients of its first replica alone whether to skip an
    update. Where another overflows, the update is applied and brings infinities into every weight.
    """
    if len(evidence.run.replicas) < 2:
        return
    bad = np.flatnonzero(evidence.nonfinite.any(axis=1) & ~evidence.any_bad("weight"))[:_MOST_SAMPLES]
    for sample in bad:
        replicas = evidence.run.replica_samples(int(sample))
        overflowed = {item.replica: tensor for item in replicas if (tensor := _first_bad(evidence, item)) is not None}
        if overflowed and len(overflowed) < len(replicas):
            yield _finding(evidence, int(sample), overflowed)
            return


def _first_bad(evidence: Evidence, replica: ReplicaSample) -> TensorRecord | None:
    """Return the first tensor, in the order of the passes, that was not finite on a replica; None where all were."""
    values = replica.scalars
    is_bad = (values["positive_infinities"] > 0) | (values["negative_infinities"] > 0) | (values["nans"] > 0)
    forward = {layer.id: place for place, layer in enumerate(evidence.layers)}

    def place(tensor: TensorRecord) -> tuple[int, int]:
        order = forward.get(tensor.layer, len(forward))
        return _KINDS.index(tensor.kind), order if tensor.kind == "activation" else -order

    found = [tensor for tensor in evidence.run.tensors if tensor.kind in _KINDS and is_bad[tensor.index]]
    return min(found, key=place, default=None)


def _finding(evidence: Evidence, sample: int, overflowed: dict[int, TensorRecord]) -> Finding:
    run, taken = evidence.run, evidence.samples[sample]
    tensor = next(iter(overflowed.values()))
    where = [f"replica {item.number} (worker {item.worker})" for item in run.replicas if item.number in overflowed]
    names = ", ".join(where[:3]) + (f" and {len(where) - 3:,} more" if len(where) > 3 else "")
    kind = {"activation": "the output", "gradient": "the gradient", "weight_gradient": "a weight gradient"}[tensor.kind]
    applied = " The update was applied all the same and spoiled the weights." if taken.applied else ""
    return Finding(
        id="lone_overflow",
        layer=tensor.layer,
        severity="error" if taken.applied else "warning",
        confidence="observed",
        action="fix_data",
        numbers={"replicas that overflowed": Number(len(overflowed), 0), "replicas": Number(len(run.replicas))},
        sentence=(
            f"At step {taken.step:,} only {names} of {len(run.replicas)} replicas held infinities or NaN, first in "
            f"{kind} of {quoted(tensor.layer)}: its part of the batch is to blame, or its device.{applied}"
        ),
    )
