"""What a verification showed, in words: the same in the terminal and in the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precscope.advice.proposal import scale_to_begin_with, verdict_sentence
from precscope.advice.wording import counted, listed, plain, quoted
from precscope.replay import TURNED, Criterion

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.policy import Price
    from precscope.replay import Measured
    from precscope.verification import PricedPolicy, Verification

__all__ = ["ProofView", "proof_view"]

_BFLOAT16 = Criterion.for_policy("mixed_bfloat16")
_MOST_PINS, _MOST_LEFT_OUT = 6, 3


@dataclass(frozen=True)
class ProofView:
    """A proof.

    Attributes:
        proven: Whether it is one.
        sentence: The outcome.
        rows: What was measured, as labels and texts.
    """

    proven: bool
    sentence: str
    rows: tuple[tuple[str, str], ...]


def proof_view(verification: Verification | None) -> ProofView | None:
    """Return what there is to say about a verification; None where there is none."""
    if verification is None:
        return None
    return ProofView(verification.proven, verdict_sentence(verification), tuple(_rows(verification)))


def _rows(proof: Verification) -> Iterator[tuple[str, str]]:
    needed = f"needs {proof.criterion.gradient_cosine:g}"
    before = f"cosine to float32, plain {proof.before_policy}: {_cosine(proof.before)}"
    if proof.after is None or (proof.nothing_needed and proof.before_policy == proof.default):
        yield "gradient", f"{before} ({needed})"
    else:
        yield "gradient", f"{before}"
        now = f"with {listed(proof.pins)} in float32" if proof.pins else f"in {proof.default}"
        yield "", f"{now}: {_cosine(proof.after)} ({needed})"
    measured = proof.after or proof.before
    variables = [(r.worst_cosine, r.worst_variable) for r in measured.counting]
    farthest, variable = min(((c, v) for c, v in variables if c is not None and v is not None), default=(None, None))
    if farthest is not None and variable is not None:
        yield "", f"farthest off: {quoted(variable)}, {_digits(farthest)} (needs {proof.criterion.variable_cosine:g})"
    yield from _rounding(proof)
    yield "loss scale", _scales(proof)
    if proof.bfloat16 is not None:
        yield (
            "instead",
            f"mixed_bfloat16 with nothing pinned: {_cosine(proof.bfloat16)} (needs {_BFLOAT16.gradient_cosine:g})",
        )
    yield from _prices(proof)
    yield "replayed", _replayed(proof)
    if proof.took_s:
        traced = (
            ""
            if proof.tracing_s is None
            else f", {proof.tracing_s:.1f} s of them tracing the step {_times(proof.traces)}"
        )
        yield "", f"It took {sum(proof.took_s.values()):.1f} s{traced}."
    for name, reason in list(proof.left_out.items())[:_MOST_LEFT_OUT]:
        yield "not tried", f"{quoted(name)}: {reason}"
    if len(proof.left_out) > _MOST_LEFT_OUT:
        yield "", f"{len(proof.left_out) - _MOST_LEFT_OUT} more layers could not be tried"


def _rounding(proof: Verification) -> Iterator[tuple[str, str]]:
    """Yield why batches pass that are below the limits, where there are such."""
    measured, limits = proof.after or proof.before, proof.criterion
    excused = measured.passed_as_noise
    if not excused:
        return
    added, moved = (
        max(value for value in values if value is not None)
        for values in ([r.added_variance for r in excused], [r.moved_mean for r in excused])
    )
    passes = "passes" if len(excused) == 1 else "pass"
    yield (
        "rounding",
        f"{len(excused)} of {counted(measured.judged, 'replay')} below that {passes}: "
        f"the errors drown in the noise of batches. They add {_percent(added)} to its variance "
        f"(may add {100 * limits.added_variance:g} %) and move the mean gradient by {_percent(moved)} "
        f"(may by {100 * limits.moved_mean:g} %)",
    )


def _percent(share: float) -> str:
    return "less than 0.1 %" if share < 1e-3 else f"{100 * share:.1f} %"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _cosine(measured: Measured) -> str:
    worst = measured.worst
    if worst.passed or worst.cosine is not None:
        number = "none" if worst.cosine is None else _digits(worst.cosine)
        says_more = worst.why_not is not None and not worst.why_not.startswith(TURNED)
        return f"{number}: {worst.why_not}" if says_more else number
    return worst.why_not or "none"


def _digits(cosine: float) -> str:
    """Return a cosine with as many digits as tell it from 1."""
    distance = 1 - cosine
    return f"{cosine:.4f}" if distance >= 1e-3 else f"{cosine:.6f}" if distance >= 1e-6 else "1.000000"


def _scales(proof: Verification) -> str:
    measured = proof.after or proof.before
    judged = list(dict.fromkeys(replay.loss_scale for replay in measured.counting))
    text = f"judged at {' and '.join(f'{scale:,g}' for scale in judged)}"
    if (settled := measured.settled_scale) is not None:
        text += f", to which it fell from {settled * 2**measured.fallen:,g}"
        begins = scale_to_begin_with(proof)
        if begins == settled:
            text += ": the policy begins there" if proof.proven else ""
        elif begins is not None:
            text += f"; the policy begins at {begins:,g}, to which it fell in the training"
    others = dict.fromkeys(replay.loss_scale for replay in measured.informing)
    for scale in others:
        plain_ones = [r for r in proof.before.informing if r.loss_scale == scale]
        state = "passes" if all(replay.passed for replay in plain_ones) else "fails"
        text += f"; at {scale:,g} plain mixed precision {state}" if plain_ones else ""
    unscaled = all(replay.loss_reference is None for replay in measured.replays)
    if unscaled and proof.default == "mixed_float16":
        text += "; the train step never calls optimizer.scale_loss, as float16 training has to: small gradients vanish"
    return text


def _prices(proof: Verification) -> Iterator[tuple[str, str]]:
    plain_price, policy, float32 = (proof.prices.get(name) for name in ("plain", "policy", "float32"))
    if plain_price is None or policy is None or float32 is None or plain_price.time_ms is None:
        return
    yield "price", f"plain {_priced(plain_price)}; float32 throughout {_priced(float32)}"
    if not proof.pins:
        return
    noise = (plain_price.time_noise_ms or 0) + (policy.time_noise_ms or 0)
    yield "", f"this policy {_priced(policy)}: {_difference(policy.beside(plain_price), noise, plain_price.time_ms)}"
    if len(proof.pins) > 1:
        for pin in proof.pins[:_MOST_PINS]:
            if pin in proof.pin_prices:
                yield "", f"{quoted(pin)} alone: {_difference(proof.pin_prices[pin], noise, plain_price.time_ms)}"


def _priced(price: PricedPolicy) -> str:
    parts = [] if price.time_ms is None else [f"{plain(price.time_ms)} ms"]
    parts += [] if price.memory_mib is None else [f"{plain(price.memory_mib)} MiB"]
    parts += [] if price.casts is None else [counted(price.casts, "cast")]
    return ", ".join(parts)


def _difference(price: Price, noise_ms: float, of_ms: float) -> str:
    parts = []
    if price.time_ms is not None:
        seen = abs(price.time_ms) > noise_ms
        percent = f" ({price.time_ms / of_ms:+.0%})" if of_ms else ""
        parts.append(f"{price.time_ms:+.2g} ms{percent}" if seen else f"no difference in time above ±{noise_ms:.2g} ms")
    parts += [] if price.memory_mib is None else [f"{price.memory_mib:+.3g} MiB"]
    parts += [] if price.casts is None else [f"{price.casts:+d} casts"]
    return ", ".join(parts)


def _replayed(proof: Verification) -> str:
    steps = ", ".join(f"{step:,}" for step in proof.batches)
    return (
        f"{'batch' if len(proof.batches) == 1 else 'batches'} of step {steps}, weights {proof.weights}; "
        f"{counted(proof.trials, 'set')} of layers tried. Prices are medians of {proof.timed_passes} passes forward "
        f"and backward, measured without the update and without XLA, on {proof.device}."
    )
