"""When a replayed batch agrees with float32: the numbers, the criterion, and the judgement.

A batch is replayed: forward and backward without an update, once in float32 and once under the policy that is judged,
from the same weights, with the same random draws. What is compared is what the optimizer would receive: the gradients
of the weights, unscaled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from precscope.advice.wording import counted, plain, quoted
from precscope.gradient_noise import WholeGradient, is_noise, whole_noise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.gradient_noise import Noise

__all__ = [
    "LEAST_SCALE",
    "TURNED",
    "Criterion",
    "JudgedScales",
    "Measured",
    "Replay",
    "VariableComparison",
    "judge_replay",
    "scales_to_judge",
]

#: So often may a dynamic loss scale halve while it seeks its level: as many steps are skipped, and no more.
PROBES = 3

#: A policy is not made to begin lower: scales from 8 to 32,768 are what float16 trainings were found to need
#: (Micikevicius et al. 2018, Mixed Precision Training, section 3.2).
LEAST_SCALE = 8.0

#: How the reason begins of a replay that failed for its cosine.
TURNED = "the gradient's cosine to float32 is"


def _limit(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Criterion:
    """What a replay has to show to pass.

    The cosine tells how far a gradient has turned, and is blind to its length, so the length has a limit of its own. A
    whole gradient hides a small variable, so each has a cosine too, with a wider limit: rounding turns the gradient of
    one variable further than that of all. A variable whose gradient is a negligible part of the whole is not judged
    alone: a bias before a normalization has a gradient of nothing but rounding errors, in float32 as well.

    Rounding that drowns in the noise that batches have anyway is no fault: a gradient that has turned further passes,
    down to a floor, where its errors add little to the variance between batches and hardly move their mean; see
    `precscope.gradient_noise`. One variable may show ten times what the whole may, in squares of lengths.

    bfloat16 has three bits fewer than float16 (8 significant ones, not 11), so its ordinary rounding turns a healthy
    gradient eight times as far. What is looked for is a fault, not that: its limits are wider, see `for_policy`.
    """

    gradient_cosine: float = _limit(0.999, "Least cosine of all weight gradients together to those in float32.")
    variable_cosine: float = _limit(0.99, "Least cosine of the gradient of each variable.")
    negligible_norm: float = _limit(
        1e-4, "Variables with a smaller share of the gradient's length are not judged alone."
    )
    gradient_length: float = _limit(0.05, "Most that the whole gradient's length may differ, relative.")
    gradient_floor: float = _limit(0.98, "Least cosine of all weight gradients where rounding passes as noise.")
    variable_floor: float = _limit(0.8, "Likewise of each variable's.")
    added_variance: float = _limit(0.02, "Most that errors passing as noise add to the variance between batches.")
    variable_added_variance: float = _limit(0.2, "Likewise of one variable's.")
    moved_mean: float = _limit(0.05, "Most that errors passing as noise move the batches' mean gradient, relative.")
    variable_moved_mean: float = _limit(0.2, "Likewise of one variable's.")
    negligible_error: float = _limit(
        1e-3, "A variable's smaller error, as a share of the whole gradient's length, need only not move its mean."
    )
    loss: float = _limit(0.01, "Most that the loss may differ, relative.")
    loss_floor: float = _limit(1e-4, "Beside that the loss may differ by so much.")

    @classmethod
    def for_policy(cls, policy: str) -> Criterion:
        """Return the limits for a default policy, by its name."""
        return cls(gradient_cosine=0.99, variable_cosine=0.9) if "bfloat16" in policy else cls()


@dataclass(frozen=True)
class VariableComparison:
    """One variable's gradient in both passes, unscaled.

    Attributes:
        layer: Id of the layer that owns it.
        name: Its name.
        dot: Scalar product of both.
        norm_reference: Euclidean norm in float32.
        norm: Euclidean norm under the policy.
        finite: Whether every element under the policy is finite.
        noise: How it scatters over the batches; None where that was not measured.
    """

    layer: str
    name: str
    dot: float
    norm_reference: float
    norm: float
    finite: bool = True
    noise: Noise | None = None

    @property
    def error(self) -> float:
        """Euclidean norm of the difference."""
        return math.sqrt(max(self.norm_reference**2 + self.norm**2 - 2 * self.dot, 0.0))

    @property
    def cosine(self) -> float | None:
        """The cosine of both; None where one of them is zero or not finite."""
        product = self.norm_reference * self.norm
        return self.dot / product if self.finite and 0 < product < math.inf else None


@dataclass(frozen=True)
class Replay:
    """One batch at one loss scale under one policy, against float32.

    Attributes:
        step: The train step that the batch is of.
        loss_scale: The scale that the loss was multiplied by.
        passed: Whether it agrees with float32.
        why_not: In words; None where it passed.
        cosine: Of all weight gradients; None where they are not finite or zero.
        length_ratio: Length of the gradient by that in float32; None likewise.
        worst_variable: Layer and variable with the least cosine, of those that count.
        worst_cosine: That cosine.
        loss: The unscaled loss; None where it is not finite or not known.
        loss_reference: The loss in float32; None where it is not known.
        overflowed: Whether gradients are not finite although output and loss are: its own or, where noise was asked
            for, those of another batch at its weights. A lower loss scale may mend that.
        rule: What it passed by: "limits", or "noise" where a cosine is below its limit and the noise of batches
            excuses that; None where it failed.
        added_variance: What its error adds to the variance between batches, as a share; None where that was not asked.
        moved_mean: How far the error that batches share moves their mean gradient, relative; None likewise.
    """

    step: int
    loss_scale: float
    passed: bool
    why_not: str | None
    cosine: float | None
    length_ratio: float | None
    worst_variable: str | None
    worst_cosine: float | None
    loss: float | None
    loss_reference: float | None
    overflowed: bool = False
    rule: Literal["limits", "noise"] | None = None
    added_variance: float | None = None
    moved_mean: float | None = None


@dataclass(frozen=True)
class Measured:
    """What was measured of one set of layers.

    Attributes:
        replays: Each batch at each loss scale, judged scales first.
        judged: How many of them count; the others inform.
        fallen: By how many halvings a judged loss scale had to fall until all batches passed.
    """

    replays: tuple[Replay, ...]
    judged: int
    fallen: int = 0

    @property
    def counting(self) -> tuple[Replay, ...]:
        """The judged replays."""
        return self.replays[: self.judged]

    @property
    def informing(self) -> tuple[Replay, ...]:
        """The others."""
        return self.replays[self.judged :]

    @property
    def passed(self) -> bool:
        """Whether every replay that counts passed."""
        return all(replay.passed for replay in self.counting)

    @property
    def worst(self) -> Replay:
        """The judged replay that is farthest from float32: a failed one first, then the least cosine."""
        return min(self.counting, key=lambda r: (r.passed, -1.0 if r.cosine is None else r.cosine))

    @property
    def passed_as_noise(self) -> tuple[Replay, ...]:
        """The judged replays that pass because rounding drowns in the noise of batches."""
        return tuple(replay for replay in self.counting if replay.rule == "noise")

    @property
    def settled_scale(self) -> float | None:
        """The loss scale at which all batches passed where it had to fall for that; None elsewhere."""
        scales = [replay.loss_scale for replay in self.counting]
        return min(scales) if self.fallen and self.passed else None


def judge_replay(
    comparisons: Sequence[VariableComparison],
    *,
    step: int,
    loss_scale: float,
    loss: float | None,
    loss_reference: float | None,
    outputs_finite: bool,
    criterion: Criterion,
) -> Replay:
    """Return whether one replay passes, and with what numbers."""
    whole = WholeGradient(comparisons)
    ratio = whole.norm / whole.length if whole.finite and whole.length > 0 else None
    worst = min(
        (item for item in comparisons if item.norm_reference > criterion.negligible_norm * whole.length),
        key=lambda item: -2.0 if item.cosine is None else item.cosine,
        default=None,
    )
    shown_loss = loss if loss is not None and math.isfinite(loss) else None
    turned = _turned(whole, worst, criterion)
    noise = whole_noise(comparisons)
    why_not = (
        _not_finite(comparisons, outputs_finite, loss)
        or (None if turned is None or is_noise(comparisons, criterion) else turned)
        or _lengthened(ratio, criterion)
        or _other_loss(loss, loss_reference, criterion)
    )
    return Replay(
        step,
        loss_scale,
        why_not is None,
        why_not,
        whole.cosine,
        ratio,
        None if worst is None else f"{worst.layer}/{worst.name}",
        None if worst is None else worst.cosine,
        shown_loss,
        loss_reference,
        overflowed=_overflowed(whole.finite, noise) and outputs_finite and (loss is None or shown_loss is not None),
        rule=None if why_not is not None else "limits" if turned is None else "noise",
        added_variance=None if noise is None else noise.added_variance,
        moved_mean=None if noise is None else noise.moved,
    )


def _overflowed(finite: bool, noise: Noise | None) -> bool:
    return not finite or (noise is not None and not math.isfinite(noise.error))


def _not_finite(comparisons: Sequence[VariableComparison], outputs_finite: bool, loss: float | None) -> str | None:
    if not outputs_finite:
        return "the model's output is not finite"
    if loss is not None and not math.isfinite(loss):
        return "the loss is not finite"
    bad = [item for item in comparisons if not item.finite]
    if not bad:
        return None
    layers = list(dict.fromkeys(item.layer for item in bad))
    return f"the gradient of {quoted(layers[-1])} is not finite" + (
        f", nor that of {counted(len(layers) - 1, 'other layer')}" if len(layers) > 1 else ""
    )


def _turned(whole: WholeGradient, worst: VariableComparison | None, criterion: Criterion) -> str | None:
    if whole.cosine is None:
        return "the gradient is zero and is not in float32" if whole.length > 0 else None
    if whole.cosine < criterion.gradient_cosine:
        return f"{TURNED} {whole.cosine:.5f}, below {criterion.gradient_cosine:g}"
    if worst is not None and (worst.cosine is None or worst.cosine < criterion.variable_cosine):
        what = (
            "is zero"
            if worst.cosine is None
            else f"has the cosine {worst.cosine:.5f}, below {criterion.variable_cosine:g}"
        )
        return f"the gradient of {quoted(f'{worst.layer}/{worst.name}')} {what}"
    return None


def _lengthened(ratio: float | None, criterion: Criterion) -> str | None:
    if ratio is None or abs(ratio - 1) <= criterion.gradient_length:
        return None
    return f"the gradient is {plain(ratio)} times as long as in float32"


def _other_loss(loss: float | None, reference: float | None, criterion: Criterion) -> str | None:
    if loss is None or reference is None:
        return None
    if abs(loss - reference) <= criterion.loss * abs(reference) + criterion.loss_floor:
        return None
    return f"the loss is {plain(loss)}, in float32 {plain(reference)}"


@dataclass(frozen=True)
class JudgedScales:
    """At which loss scales a policy is replayed.

    Attributes:
        judged: Where it has to pass.
        informing: Where it is measured as well.
        may_fall: By how many halvings a judged scale may fall before all batches pass, where gradients overflow.
    """

    judged: tuple[float, ...]
    informing: tuple[float, ...] = ()
    may_fall: int = 0

    def down_to_the_least(self) -> JudgedScales:
        """Return where a policy is replayed if no training says how far a dynamic scale has to fall.

        So it is of a run in float32, and of one whose output was not finite: its scale fell for no gradient.
        """
        if not self.may_fall:
            return self
        return replace(self, may_fall=max(self.may_fall, _halvings(min(self.judged), LEAST_SCALE)))

    def after(self, measured: Measured) -> JudgedScales:
        """Return where parts of a set are replayed that passed as `measured`: they may not fall further than it did.

        Otherwise a layer whose gradients overflow at the scale that training begins with would be found not to be
        needed, at the price of a lower scale.
        """
        return replace(self, may_fall=min(self.may_fall, measured.fallen))


def scales_to_judge(initial: float | None, settled: float | None, is_dynamic: bool = True) -> JudgedScales:
    """Return the loss scales at which a policy has to pass: the one that it begins with, and the one it grew to.

    A dynamic scale seeks its level: it may fall by three halvings, and as far as the training's own scale did. One
    that fell below `LEAST_SCALE` did so because of the fault that is to be cured: what it came to informs only.

    Args:
        initial: The scale that training begins with; None without loss scaling.
        settled: The last one seen; None where it is not known.
        is_dynamic: Whether the scale moves.
    """
    if initial is None:
        return JudgedScales((1.0,))
    if not is_dynamic:
        return JudgedScales((initial,))
    grew, fell = settled is not None and settled > initial, settled is not None and 1 <= settled < initial
    judged = (initial, settled) if grew and settled is not None else (initial,)
    if not fell or settled is None:
        return JudgedScales(judged, (), PROBES)
    sought = _halvings(initial, settled) if settled >= LEAST_SCALE else 0
    return JudgedScales(judged, (settled,), max(PROBES, sought))


def _halvings(scale: float, lower: float) -> int:
    """Return how often `scale` can be halved without getting below `lower`."""
    return max(0, math.floor(math.log2(scale / lower)))
