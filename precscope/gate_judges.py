"""The judges of the gate, one a limit. What was not measured is "not judged", never taken for held."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from precscope.advice import Evidence, analyze
from precscope.advice.finding import SEVERITIES
from precscope.advice.wording import counted, plain, quoted, share
from precscope.errors import PolicyError
from precscope.formats import FORMATS
from precscope.measured_flush import measured_flushed_shares
from precscope.policy_drift import policy_drift
from precscope.policy_file import read_policy

if TYPE_CHECKING:
    from precscope.limits import Limits
    from precscope.reader import Run
    from precscope.records import TensorKind

__all__ = ["JUDGES", "Judge", "Judgement", "Outcome", "judge_ending"]

Outcome = Literal["held", "not held", "not judged"]


@dataclass(frozen=True)
class Judgement:
    """One limit beside what was measured.

    Attributes:
        limit: Name of the limit, or "ending" for how the run ended.
        outcome: Whether it held; "not judged" where what it limits was not measured.
        allowed: The limit's value; None where it has none.
        value: What was measured, the worst of it; None where nothing was.
        sentence: The two in words.
        offenders: What does not hold it, worst first: layers, with their numbers, or findings, in words.
    """

    limit: str
    outcome: Outcome
    allowed: float | str | None
    value: float | str | None
    sentence: str
    offenders: tuple[str, ...] = ()


def judge_ending(run: Run) -> Judgement:
    """Return whether the training ended as it should."""
    outcome: Outcome = {"finished": "held", "running": "not judged"}.get(run.status, "not held")  # type: ignore[assignment]
    words = {
        "finished": "The training finished.",
        "running": "The training still goes on; any_ending judges what is there already.",
        "interrupted": "The training was interrupted.",
        "killed": "The process of the training was killed.",
    }
    error = f": {run.record.error}" if run.record.error else "."
    return Judgement("ending", outcome, "finished", run.status, words.get(run.status, f"The training failed{error}"))


def _severity(evidence: Evidence, limits: Limits) -> Judgement:
    allowed = str(limits.max_severity)
    findings = analyze(evidence)
    refused = SEVERITIES[: len(SEVERITIES) - ("none", "info", "warning").index(allowed)]
    offenders = tuple(f"{found.severity}: {found.sentence}" for found in findings if found.severity in refused)
    worst = findings[0].severity if findings else "none"
    if not offenders and not evidence.samples:
        return Judgement("max_severity", "not judged", allowed, None, "No step was sampled, so nothing can be found.")
    said = f"The worst finding is of severity {worst}" if findings else "Nothing was found"
    return _judged("max_severity", allowed, worst, f"{said}; allowed: {allowed}.", offenders)


def _flushed(evidence: Evidence, limits: Limits) -> Judgement:
    shares = measured_flushed_shares(evidence.run)
    reason = "No reference step was taken, so what was flushed is not known."
    return _most_of_layers("max_flushed_share", limits.max_flushed_share, shares, reason, "of the values flushed")


def _subnormal(evidence: Evidence, limits: Limits) -> Judgement:
    shares: dict[str, float] = {}
    # As the report has it: the loss scale moves gradients, so those of another scale are another matter.
    for kind, samples in (("activation", evidence.all_samples), ("gradient", evidence.at_current_scale)):
        for layer, columns in _narrow(evidence, kind).items():  # type: ignore[arg-type]
            places = np.ix_(samples, np.array(columns, np.intp))
            nonzero = int(evidence.nonzero[places].sum())
            if nonzero:
                found = int(evidence.counts("subnormals")[places].sum()) / nonzero
                shares[layer] = max(found, shares.get(layer, 0.0))
    reason = "No output or gradient in 16 bits with finite values was recorded."
    return _most_of_layers("max_subnormal_share", limits.max_subnormal_share, shares, reason, "of the values subnormal")


def _skipped_steps(evidence: Evidence, limits: Limits) -> Judgement:
    skips, allowed = evidence.skips, int(limits.max_skipped_steps or 0)
    if (unknown := _skips_unknown(evidence, "max_skipped_steps", allowed)) is not None:
        return unknown
    skipped = skips.skipped or 0
    words = f"{skipped:,} of {counted(skips.seen, 'step')} skipped; allowed: {allowed:,}."
    if skips.sampled_only and skipped <= allowed:
        reason = (
            f"Only sampled steps are known ({skipped:,} of {skips.seen:,} skipped); others may have been skipped too."
        )
        return Judgement("max_skipped_steps", "not judged", allowed, skipped, reason)
    return _judged("max_skipped_steps", allowed, skipped, words, (words,) if skipped > allowed else ())


def _skipped_share(evidence: Evidence, limits: Limits) -> Judgement:
    skips, allowed = evidence.skips, float(limits.max_skipped_share or 0.0)
    if (unknown := _skips_unknown(evidence, "max_skipped_share", allowed)) is not None:
        return unknown
    found = (skips.skipped or 0) / max(skips.seen, 1)
    of_what = "sampled step" if skips.sampled_only else "step"
    words = f"{share(found)} of {counted(skips.seen, of_what)} skipped; allowed: {share(allowed)}."
    return _judged("max_skipped_share", allowed, found, words, (words,) if found > allowed else ())


def _skips_unknown(evidence: Evidence, name: str, allowed: float) -> Judgement | None:
    if evidence.skips.skipped is not None and evidence.skips.seen:
        return None
    if evidence.loss_scaling in ("none", "static") and evidence.samples:
        return Judgement(name, "held", allowed, 0, "Without a dynamic loss scale no step is skipped.")
    return Judgement(name, "not judged", allowed, None, "Whether steps were skipped is not known.")


def _loss_scale(evidence: Evidence, limits: Limits) -> Judgement:
    lowest, allowed = evidence.skips.lowest_scale, float(limits.min_loss_scale or 0.0)
    if lowest is None:
        scaling = evidence.loss_scaling
        reason = "The loss is not scaled." if scaling == "none" else "No loss scale was seen."
        return Judgement("min_loss_scale", "not judged", allowed, None, reason)
    words = f"The lowest loss scale seen is {plain(lowest)}; allowed: {plain(allowed)} or more."
    return _judged("min_loss_scale", allowed, lowest, words, () if lowest >= allowed else (words,))


def _headroom(evidence: Evidence, limits: Limits) -> Judgement:
    name, allowed = "min_headroom_bits", float(limits.min_headroom_bits or 0.0)
    infinities = evidence.counts("positive_infinities") + evidence.counts("negative_infinities")
    known: dict[str, float] = {}
    overflowed: dict[str, str] = {}
    for layer, columns in _narrow(evidence, "activation").items():
        if count := int(infinities[:, columns].sum()):
            overflowed[layer] = f"{quoted(layer)} overflowed: {counted(count, 'infinite value')}"
        dtypes = [evidence.run.tensors[column].dtype for column in columns]
        rooms = [FORMATS[dtype].headroom_bits(_largest(evidence, c)) for dtype, c in zip(dtypes, columns, strict=True)]
        if least := [room for room in rooms if room is not None]:
            known[layer] = min(least)
    ranked = sorted(known.items(), key=lambda item: item[1])
    if not ranked:
        reason = "No output in 16 bits with finite values other than zero was recorded."
        outcome: Outcome = "not held" if overflowed else "not judged"
        return Judgement(name, outcome, allowed, None, reason, tuple(overflowed.values()))
    short = [(layer, room) for layer, room in ranked if room < allowed and layer not in overflowed]
    offenders = [f"{quoted(layer)}: {room:.2f} bits" for layer, room in short]
    layer, room = ranked[0]
    words = f"The least headroom is {room:.2f} bits, at {quoted(layer)}; allowed: {allowed:g} or more."
    return _judged(name, allowed, room, words, (*overflowed.values(), *offenders))


def _policy(evidence: Evidence, limits: Limits) -> Judgement:
    path = str(limits.policy)
    policy = read_policy(path)  # a file that cannot be read is an error, not a layer that departs from it
    if not evidence.layers:
        return Judgement("policy", "not judged", path, None, "The run has no layers yet.")
    try:
        drift = policy_drift(evidence.run, policy)
    except PolicyError as error:
        return Judgement("policy", "not judged", path, None, str(error))
    words = (
        f"{counted(len(drift), 'difference')} to the policy file." if drift else "All layers are as the file has them."
    )
    return _judged("policy", path, len(drift), words, drift)


def _largest(evidence: Evidence, column: int) -> float | None:
    found = evidence.absmax[:, column]
    found = found[np.isfinite(found)]
    return float(found.max()) if found.size else None


def _narrow(evidence: Evidence, kind: TensorKind) -> dict[str, list[int]]:
    """Return the columns of the tensors of a kind that have 16 bits, by layer."""
    columns: dict[str, list[int]] = defaultdict(list)
    for tensor in evidence.tensors(kind):
        if FORMATS[tensor.dtype].bits <= 16:
            columns[tensor.layer].append(tensor.index)
    return columns


def _most_of_layers(name: str, limit: float | None, shares: dict[str, float], reason: str, what: str) -> Judgement:
    allowed = float(limit or 0.0)
    if not shares:
        return Judgement(name, "not judged", allowed, None, reason)
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    offenders = tuple(f"{quoted(layer)}: {share(part)}" for layer, part in ranked if part > allowed)
    layer, worst = ranked[0]
    words = f"At most {share(worst)} {what}, at {quoted(layer)}; allowed: {share(allowed)}."
    return _judged(name, allowed, worst, words, offenders)


def _judged(
    name: str, allowed: float | str, value: float | str | None, words: str, offenders: tuple[str, ...]
) -> Judgement:
    return Judgement(name, "not held" if offenders else "held", allowed, value, words, offenders)


Judge = Callable[[Evidence, "Limits"], Judgement]
#: By the limit's name, in the order to show them.
JUDGES: dict[str, Judge] = {
    "max_severity": _severity,
    "max_flushed_share": _flushed,
    "max_subnormal_share": _subnormal,
    "max_skipped_steps": _skipped_steps,
    "max_skipped_share": _skipped_share,
    "min_loss_scale": _loss_scale,
    "min_headroom_bits": _headroom,
    "policy": _policy,
}
