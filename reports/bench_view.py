"""A bench as its table tells it: rows of text, and what follows from the numbers in sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from precscope.advice.wording import counted
from precscope.reports.text import ABSENT, byte_size, compact, printable, significant

if TYPE_CHECKING:
    from precscope.bench_result import BenchResult, PolicyResult
    from precscope.spread import Spread

__all__ = [
    "BenchRow",
    "BenchView",
    "Standing",
    "bench_view",
    "machine",
    "milliseconds",
    "quartiles",
    "rate",
    "ratio",
    "speed",
    "standing",
    "three_digits",
]

_REFERENCE = "float32"

#: How a policy fares against float32: "same" where their quartiles overlap.
Standing = Literal["faster", "slower", "same", "failed", "unknown"]


@dataclass(frozen=True)
class BenchRow:
    """One policy, its figures as text."""

    policy: str
    standing: Standing
    step: str
    quartiles: str
    ratio: str
    rate: str
    memory: str
    memory_ratio: str
    compile: str


@dataclass(frozen=True)
class BenchView:
    """A bench in words.

    Attributes:
        title: What was measured.
        machine: Where, and with which versions.
        rows: One a policy.
        sentences: What the numbers say, each with how the policy stands.
        notes: How they were measured.
    """

    title: str
    machine: str
    rows: tuple[BenchRow, ...]
    sentences: tuple[tuple[Standing, str], ...]
    notes: tuple[str, ...]


def bench_view(result: BenchResult) -> BenchView:
    """Return the bench in words."""
    reference = next((policy for policy in result.policies if policy.policy == _REFERENCE), None)
    standings = [_standing(policy, reference) for policy in result.policies]
    rows = [_row(policy, stands) for policy, stands in zip(result.policies, standings, strict=True)]
    sentences: list[tuple[Standing, str]] = []
    for policy, stands in zip(result.policies, standings, strict=True):
        sentences += _sentences(policy, stands)
    return BenchView(
        title=_title(result),
        machine=machine(result.hardware, result.software),
        rows=tuple(rows),
        sentences=tuple(sentences),
        notes=_notes(result),
    )


def ratio(value: float | None) -> str:
    """Return a ratio in at most seven characters: "0.62×"."""
    return ABSENT if value is None else f"{value:.2f}×"


def milliseconds(value: float | None) -> str:
    """Return a time in milliseconds with three digits: "4.52 ms"."""
    return ABSENT if value is None else f"{three_digits(value)} ms"


def three_digits(value: float) -> str:
    """Return a number with three significant digits, zeros at its end included: "1.70"."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def quartiles(spread: Spread | None) -> str:
    """Return the quartiles of a time in milliseconds: "4.1 to 4.9"."""
    if spread is None:
        return ABSENT
    return f"{three_digits(spread.lower_quartile)} to {three_digits(spread.upper_quartile)}"


def machine(hardware: dict[str, Any], software: dict[str, str]) -> str:
    """Return hardware and software in a line."""
    gpus = [str(gpu.get("name")) for gpu in hardware.get("gpus") or ()]
    cpu = f"CPU {hardware.get('cpu') or ''} ({hardware.get('cpu_count')} cores)".replace("  ", " ")
    names = {"keras": "Keras", "tensorflow": "TensorFlow"}
    versions = [f"{title} {software[name]}" for name, title in names.items() if name in software]
    return printable(" · ".join([*(gpus or [cpu] if hardware else []), *versions]))


def standing(own: Spread | None, other: Spread | None) -> Standing:
    """Return how step times stand to those of the reference: "same" where the quartiles overlap."""
    if own is None or other is None or own is other:
        return "unknown"
    if own.upper_quartile < other.lower_quartile:
        return "faster"
    return "slower" if own.lower_quartile > other.upper_quartile else "same"


def rate(examples_per_s: float | None) -> str:
    """Return examples in a second: "12,345"."""
    if examples_per_s is None:
        return ABSENT
    return compact(round(examples_per_s)) if examples_per_s >= 100 else significant(examples_per_s)


def _standing(policy: PolicyResult, reference: PolicyResult | None) -> Standing:
    if policy.step_time_ms is None:
        return "failed" if policy.error else "unknown"
    return standing(policy.step_time_ms, None if reference is None else reference.step_time_ms)


def _row(policy: PolicyResult, stands: Standing) -> BenchRow:
    spread = policy.step_time_ms
    return BenchRow(
        policy=printable(policy.policy),
        standing=stands,
        step=milliseconds(None if spread is None else spread.median),
        quartiles=quartiles(spread),
        ratio=ratio(policy.ratio_to_float32),
        rate=rate(policy.examples_per_s),
        memory=byte_size(policy.peak_memory_bytes),
        memory_ratio=ratio(policy.memory_ratio_to_float32),
        compile=ABSENT if policy.first_step_s is None else f"{policy.first_step_s:.1f} s",
    )


def _sentences(policy: PolicyResult, stands: Standing) -> list[tuple[Standing, str]]:
    name = printable(policy.policy)
    said: list[tuple[Standing, str]] = []
    if policy.error is not None:
        kept = f" Its figures are of {counted(len(policy.round_step_ns), 'round')}." if policy.round_step_ns else ""
        said.append(("failed", f"{name} failed: {printable(policy.error)}{kept}"))
    if policy.ratio_to_float32 is not None and stands != "unknown":
        said.append((stands, speed(name, stands, policy.ratio_to_float32, _REFERENCE)))
    skipped = policy.steps - (policy.steps_applied or 0)
    if policy.steps_applied is not None and skipped > 0:
        said.append(("unknown", f"{name} skipped {skipped:,} of {counted(policy.steps, 'step')}: its loss scale."))
    return said + [("unknown", f"{name}: {printable(notice)}") for notice in policy.notices]


def speed(name: str, stands: Standing, times: float, reference: str) -> str:
    """Return how `name` fares against `reference`, whose step time it takes `times` of."""
    if stands == "faster":
        return f"{name} is {1 / times:.2f} times as fast as {reference}."
    if stands == "slower":
        return f"{name} is SLOWER than {reference}: a step takes {times:.2f} times as long."
    return f"{name} and {reference} differ by less than their own times vary: no gain is shown."


def _title(result: BenchResult) -> str:
    first = next((policy for policy in result.policies if policy.model is not None), None)
    if first is None:
        return printable(result.entry)
    parts = [result.entry, first.model, f"batch {first.batch}" if first.batch else None]
    if first.parameters is not None:
        parts.append(f"{first.parameters:,} parameters")
    return printable(" · ".join(part for part in parts if part))


def _notes(result: BenchResult) -> tuple[str, ...]:
    notes = [
        f"Step: median over {counted(result.repeats, 'round')} of {counted(result.steps, 'step')}, policies in turn, "
        "input pipeline included; compiling is not in it."
    ]
    sources = {policy.memory_source for policy in result.policies}
    if "allocator" in sources:
        notes.append("Memory: the peak of TensorFlow's allocator in each policy's own process, after compiling.")
    if "resident" in sources:
        notes.append("Memory: what the process holds on the host, TensorFlow itself (hundreds of MiB) included.")
    if sum(policy.step_time_ms is not None for policy in result.policies) and result.repeats < 3:
        notes.append("So few rounds say little about the spread.")
    return tuple(notes)
