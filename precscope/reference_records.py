"""The records of reference steps: what a train step computes in the training's policy, beside the same in float32.

Absence is None, never 0. `precscope.errors_between` defines the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from precscope.records import TensorKind

__all__ = ["ADDED_LOSS", "ReferenceMoment", "ReferenceRecord", "ReferenceStepRecord"]

#: What the name of a loss begins with that a layer adds (`add_loss`); kept as an activation of that layer.
ADDED_LOSS = "added loss"
#: Why a reference step was taken: at the start, once the loss scale had settled, in between as the budget allowed, or
#: at the session's end.
ReferenceMoment = Literal["start", "settled", "budget", "end"]


@dataclass(frozen=True)
class ReferenceStepRecord:
    """One reference step: a batch, forward and backward, in float32 and in the training's policy, without an update.

    Attributes:
        step: The train step whose batch it was. Weights and random state are those after that step, at the moment "end"
            those at the end of the session.
        moment: Why then.
        examples: Examples that it worked on; None where the batch has no dimension of examples.
        batch: Examples in the batch: more than `examples` where two passes over all of it did not fit into memory.
        loss_scale: What multiplied the loss, in both passes: in float32 a power of 2 changes no digit.
        loss_reference: Loss in float32, perhaps infinite or NaN; None where the train step does not show it: it calls
            no `scale_loss`.
        loss_policy: Loss in the training's policy; likewise.
        random: How random numbers were held equal, or why they are not.
        compiled: Whether XLA compiled the two passes. Not compiled, they round where the policy says so, and XLA may
            keep more digits in the training.
        time_ns: What it cost, tracing not counted; the first one takes longer, for TensorFlow optimizes the two graphs.
        left_out: Layers that could not be run in float32, as "layer: reason". They, and what depends on them, have a
            reference that is less than float32. Also layers whose twin failed: these have no error of their own.
    """

    step: int
    moment: ReferenceMoment
    examples: int | None
    batch: int | None
    loss_scale: float
    loss_reference: float | None
    loss_policy: float | None
    random: str
    compiled: bool
    time_ns: int
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReferenceRecord:
    """One tensor of a reference step, its calls in the step together: the training's policy against float32.

    Gradients are compared unscaled. What is own and what is inherited:

    - activation: `own_*` is the error of the layer's output where the layer, in its policy, gets the float32 input;
      `inherited_relative_error` is the rest, what the error of its input becomes at its output.
    - gradient, which arrives at the layer's output: `own_*` is the error of the gradients that the layer's backward
      pass hands on to its inputs, where it gets the float32 input and the float32 gradient, scaled by the loss scale.
      All of the arriving gradient's error is inherited.
    - weight_gradient: as activation, with the float32 input and the float32 gradient that arrives.

    Rounding the float32 input to the policy is part of the own error: where that input is beyond float16, the layer
    that gets it needs float32 as much as the one that makes it. A layer made of layers has them inside its own error.
    Own errors are None for layers that compute in float32 in the training too, and wherever they could not be taken
    (inside loops, no gradient to hand on).

    Attributes:
        step: The train step of the reference step.
        moment: Its moment: two may share a step.
        layer: Id of the layer.
        kind: "activation", "gradient" or "weight_gradient".
        name: Output index ("0"), "added loss 0" of a loss that the layer adds in its call, or the variable's name
            within the layer.
        count: Elements.
        reference_nonzero: Elements that are finite and not zero in float32.
        reference_norm: Euclidean norm of the reference, unscaled: what the errors are relative to. Beside that of other
            gradients it tells whether this one matters: a bias before a BatchNorm has none but rounding.
        flushed: Those of them that are zero in the policy.
        overflowed: Elements that are finite in float32 and infinite in the policy.
        nans: Elements that are finite in float32 and NaN in the policy.
        relative_error: ||policy - reference|| / ||reference|| over the elements that are finite in both.
        sqnr_db: Signal to quantization noise ratio in decibels; None where there is no signal, or no noise.
        cosine: Between the two tensors.
        inherited_relative_error: ||policy - own|| / ||reference||, see above.
        own_reference_nonzero: As `reference_nonzero`, of the tensors that the own error compares.
        own_flushed: As `flushed`.
        own_overflowed: As `overflowed`.
        own_nans: As `nans`.
        own_relative_error: As `relative_error`.
        own_sqnr_db: As `sqnr_db`.
        own_cosine: As `cosine`.
        rounded_input_relative_error: Of an activation: the error that is left where the layer computes in float32 and
            is given the float32 input rounded to its policy's format, as layers in 16 bits hand it over; relative to
            the reference. None where it reads nothing but data, and in runs of earlier versions.
    """

    step: int
    moment: ReferenceMoment
    layer: str
    kind: TensorKind
    name: str
    count: int
    reference_nonzero: int
    reference_norm: float | None
    flushed: int
    overflowed: int
    nans: int
    relative_error: float | None
    sqnr_db: float | None
    cosine: float | None
    inherited_relative_error: float | None = None
    own_reference_nonzero: int | None = None
    own_flushed: int | None = None
    own_overflowed: int | None = None
    own_nans: int | None = None
    own_relative_error: float | None = None
    own_sqnr_db: float | None = None
    own_cosine: float | None = None
    rounded_input_relative_error: float | None = None
