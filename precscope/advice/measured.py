"""What reference steps measured: which layers break, or lose their values, by themselves, and whether that did harm."""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from typing import TYPE_CHECKING

from precscope.reference_records import ADDED_LOSS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from precscope.records import TensorKind
    from precscope.reference_records import ReferenceRecord, ReferenceStepRecord

    Moment = tuple[int, str]

__all__ = [
    "Measured",
    "breaks_its_loss",
    "is_broken",
    "moment_of",
    "own_cosine",
    "own_flushed",
    "whole_cosine",
    "whole_flushed",
]


class Measured:
    """The reference steps of a run, asked by layer.

    A step whose loss is not finite in float32 either is no reference, as after an update that spoiled the weights, and
    is left out: what a layer makes of NaN says nothing about its precision.

    Args:
        steps: Of the run.
        records: Of the run.
    """

    def __init__(
        self,
        steps: Sequence[ReferenceStepRecord],
        records: Iterable[ReferenceRecord],
    ) -> None:
        self.steps = [step for step in steps if step.loss_reference is None or math.isfinite(step.loss_reference)]
        kept = {(step.step, step.moment) for step in self.steps}
        self._records: dict[tuple[str, TensorKind], list[ReferenceRecord]] = defaultdict(list)
        self._gradients: dict[Moment, list[ReferenceRecord]] = defaultdict(list)
        for record in records:
            if moment_of(record) not in kept:
                continue
            self._records[record.layer, record.kind].append(record)
            if record.kind == "weight_gradient":
                self._gradients[moment_of(record)].append(record)
        self._harm: dict[Moment, float | None] = {}

    def of(self, layer: str, *kinds: TensorKind) -> list[ReferenceRecord]:
        """Return what was measured of a layer's tensors of these kinds."""
        return [record for kind in kinds for record in self._records[layer, kind]]

    def of_all(self, layers: Iterable[str], kind: TensorKind) -> list[ReferenceRecord]:
        """Return what was measured of the tensors of a kind of several layers."""
        return [record for layer in layers for record in self.of(layer, kind)]

    def own(self, layer: str, *kinds: TensorKind) -> list[ReferenceRecord]:
        """Return those whose own error was measured."""
        return [record for record in self.of(layer, *kinds) if record.own_reference_nonzero is not None]

    def breaks(self, layer: str, given: str) -> bool | None:
        """Tell whether a layer would break on what `given` puts out in float32, where that breaks in its policy.

        None where no reference step saw `given` break, or none measured the layer.
        """
        broken = {moment_of(record) for record in self.own(given, "activation") if is_broken(record)}
        own = [record for record in self.own(layer, "activation") if moment_of(record) in broken]
        return any(map(is_broken, own)) if own else None

    def breaks_loss(self, layer: str) -> bool:
        """Tell whether a layer was seen to break a loss that it adds."""
        return any(map(breaks_its_loss, self.own(layer, "activation")))

    def agrees(self, layer: str, record: ReferenceRecord, most: float) -> bool:
        """Tell whether a layer's output in the step of `record` is off by `most` at most, inherited errors and all."""
        whole = [r for r in self.of(layer, "activation") if moment_of(r) == moment_of(record)]
        return bool(whole) and all(not r.overflowed and not r.nans and (r.relative_error or 0.0) <= most for r in whole)

    def harm(self, record: ReferenceRecord) -> float | None:
        """Return how far the gradient of all weights was off in the step of `record`, as a share of its length.

        Infinite where the loss was not finite; None where a gradient was not, although the loss was: the loss scale may
        be what was too high.
        """
        moment = moment_of(record)
        if moment not in self._harm:
            self._harm[moment] = self._harm_at(moment)
        return self._harm[moment]

    def share_of_gradient(self, record: ReferenceRecord) -> float:
        """Return the length of a variable's gradient by that of all of them in its step; 1 where they are all zero."""
        whole = math.hypot(*(item.reference_norm or 0.0 for item in self._gradients[moment_of(record)]))
        return (record.reference_norm or 0.0) / whole if 0 < whole < math.inf else 1.0

    def _harm_at(self, moment: Moment) -> float | None:
        if any((step.step, step.moment) == moment and _broke_the_loss(step) for step in self.steps):
            return math.inf
        gradients = self._gradients[moment]
        if not gradients or any(record.overflowed or record.nans for record in gradients):
            return None
        # A gradient that is zero in float32 has no relative error, and what it became is rounding.
        squares = [(item.reference_norm or 0.0) ** 2 for item in gradients]
        errors = [(item.relative_error or 0.0) ** 2 for item in gradients]
        total = sum(squares)
        return math.sqrt(sum(map(operator.mul, squares, errors)) / total) if total else None


def _broke_the_loss(step: ReferenceStepRecord) -> bool:
    known = step.loss_reference is not None and step.loss_policy is not None
    return known and math.isfinite(step.loss_reference or 0.0) and not math.isfinite(step.loss_policy or 0.0)


def moment_of(record: ReferenceRecord) -> Moment:
    """Return what names the record's reference step."""
    return record.step, record.moment


def is_broken(record: ReferenceRecord) -> bool:
    """Tell whether finite float32 values became infinities or NaN by the layer's own doing."""
    return bool(record.own_overflowed or record.own_nans)


def breaks_its_loss(record: ReferenceRecord) -> bool:
    """Tell whether it is a loss that a layer adds, and that became infinite or NaN by the layer's own doing."""
    return record.name.startswith(ADDED_LOSS) and is_broken(record)


def own_flushed(record: ReferenceRecord) -> float:
    """Return the share of the non-zero values that the layer itself turned into zero."""
    return (record.own_flushed or 0) / max(record.own_reference_nonzero or 0, 1)


def own_cosine(record: ReferenceRecord) -> float:
    """Return the cosine of the layer's own error; 0 where nothing is left of the tensor, 1 where nothing was there."""
    if record.own_cosine is not None:
        return record.own_cosine
    return 0.0 if record.own_flushed else 1.0


def whole_flushed(record: ReferenceRecord) -> float:
    """Return the share of the non-zero float32 values that are zero in the training's policy."""
    return record.flushed / max(record.reference_nonzero, 1)


def whole_cosine(record: ReferenceRecord) -> float:
    """Return the cosine to float32; 0 where nothing is left of the tensor, 1 where nothing was there."""
    if record.cosine is not None:
        return record.cosine
    return 0.0 if record.flushed else 1.0
