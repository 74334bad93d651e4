"""A comparison of runs as its tables tell it: rows of text and sentences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from precscope.reports.bench_view import Standing, milliseconds, quartiles, rate, ratio, speed, standing, three_digits
from precscope.reports.text import ABSENT, byte_size, printable, significant

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from precscope.compare import Comparison
    from precscope.layer_comparison import LayerComparison
    from precscope.run_summary import MemorySource, RunSummary
    from precscope.same_work import Difference

__all__ = ["CompareView", "LayerRow", "RunRow", "compare_view"]

_MEMORY: dict[MemorySource, str] = {
    "allocator": "peak of TensorFlow's allocator before the first sampled step",
    "gpu process": "most that the process held on a GPU, sampled steps and what TensorFlow reserves included",
    "gpu": "most in use on a GPU by all processes",
    "host process": "most that the process held on the host, TensorFlow itself included",
}


@dataclass(frozen=True)
class RunRow:
    """One run, its figures as text; `number` is how the other tables name it."""

    number: str
    name: str
    policy: str
    standing: Standing
    step: str
    quartiles: str
    ratio: str
    rate: str
    memory: str
    memory_ratio: str
    loss: str


@dataclass(frozen=True)
class LayerRow:
    """One layer: its times and ratios, one a run, and why they changed."""

    name: str
    dtypes: str
    times: tuple[str, ...]
    ratios: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class CompareView:
    """A comparison in words.

    Attributes:
        answer: Whether the runs did the same work, and what differs.
        same_work: The same as a flag.
        runs: One row a run.
        reference: Index of the run that the ratios are to.
        sentences: What the numbers say, each with how its run stands.
        results: Final metrics: name and one value a run.
        layers: Device time by layer, the costliest first.
        notes: How to read it.
    """

    answer: tuple[str, ...]
    same_work: bool
    runs: tuple[RunRow, ...]
    reference: int
    sentences: tuple[tuple[Standing, str], ...]
    results: tuple[tuple[str, tuple[str, ...]], ...]
    layers: tuple[LayerRow, ...]
    notes: tuple[str, ...]


def compare_view(comparison: Comparison) -> CompareView:
    """Return the comparison in words."""
    reference = comparison.runs[comparison.reference]
    standings = [
        standing(run.step_time_ms, reference.step_time_ms) if comparison.same_work else "unknown"
        for run in comparison.runs
    ]
    names = dict.fromkeys(name for run in comparison.runs for name in run.results)
    return CompareView(
        answer=_answer(comparison),
        same_work=comparison.same_work,
        runs=tuple(
            _run_row(number, run, stands, comparison.memory_source)
            for number, (run, stands) in enumerate(zip(comparison.runs, standings, strict=True), start=1)
        ),
        reference=comparison.reference,
        sentences=tuple(_sentences(comparison, standings)),
        results=tuple(
            (printable(name), tuple(significant(run.results.get(name)) for run in comparison.runs)) for name in names
        ),
        layers=tuple(_layer_row(layer) for layer in comparison.layers),
        notes=tuple(_notes(comparison)),
    )


def _answer(comparison: Comparison) -> tuple[str, ...]:
    if comparison.same_work:
        return ("Same work: model, layers, optimizer and batch agree.",)
    lines = ["NOT the same work, so there are no ratios and no layers side by side:"]
    return (*lines, *(f"{difference.what}: {_values(difference)}" for difference in comparison.differences))


def _values(difference: Difference) -> str:
    values = [ABSENT if value is None else printable(value) for value in difference.values]
    return ", ".join(f"#{number} {value}" for number, value in enumerate(values, start=1))


def _run_row(number: int, run: RunSummary, stands: Standing, source: MemorySource | None) -> RunRow:
    spread = run.step_time_ms
    memory = run.memory_bytes.get(source) if source else next(iter(run.memory_bytes.values()), None)
    return RunRow(
        number=f"#{number}",
        name=printable(run.name),
        policy=printable(run.policy or ABSENT),
        standing=stands,
        step=milliseconds(None if spread is None else spread.median),
        quartiles=quartiles(spread),
        ratio=ratio(run.time_ratio),
        rate=rate(run.examples_per_s),
        memory=byte_size(memory),
        memory_ratio=ratio(run.memory_ratio),
        loss=significant(run.loss),
    )


def _sentences(comparison: Comparison, standings: Sequence[Standing]) -> Iterator[tuple[Standing, str]]:
    reference = _called(comparison, comparison.reference)
    for place, (run, stands) in enumerate(zip(comparison.runs, standings, strict=True)):
        name = _called(comparison, place)
        if run.time_ratio is not None and stands != "unknown":
            yield stands, speed(name, stands, run.time_ratio, reference)
        if run.loss is not None and not math.isfinite(run.loss):
            yield "failed", f"{name} ended with a loss of {run.loss}."
        if run.steps_skipped and run.steps_applied is not None:
            seen = run.steps_applied + run.steps_skipped
            yield "unknown", f"{name} skipped the update of {run.steps_skipped:,} of {seen:,} steps."


def _called(comparison: Comparison, place: int) -> str:
    run = comparison.runs[place]
    return f"#{place + 1}" + (f" ({printable(run.policy)})" if run.policy else "")


def _layer_row(layer: LayerComparison) -> LayerRow:
    known = [dtype for dtype in layer.dtypes if dtype is not None]
    reasons = [
        f"#{number}: {'; '.join(printable(reason) for reason in found)}"
        for number, found in enumerate(layer.reasons, start=1)
        if found
    ]
    return LayerRow(
        name=printable(layer.layer if layer.layer is not None else f"({layer.part})"),
        dtypes=" / ".join(dict.fromkeys(known)),
        times=tuple(ABSENT if time is None else three_digits(time) for time in layer.time_ms),
        ratios=tuple(ratio(value) for value in layer.ratios),
        reasons=tuple(reasons),
    )


def _notes(comparison: Comparison) -> Iterator[str]:
    for difference in comparison.circumstances:
        yield f"Not alike: {difference.what}: {_values(difference)}. Times may differ for that reason."
    if any(run.step_time_ms for run in comparison.runs):
        against = f", ratios to {_called(comparison, comparison.reference)}" if comparison.same_work else ""
        yield f"Step: median over windows of plain steps, without sampled ones{against}."
    if comparison.memory_source is not None:
        yield f"Memory: {_MEMORY[comparison.memory_source]}."
    if any(run.loss is not None for run in comparison.runs):
        steps = ", ".join(
            f"#{number} {run.loss_step:,}"
            for number, run in enumerate(comparison.runs, start=1)
            if run.loss_step is not None
        )
        yield f"Loss: at the last sampled step ({steps})."
    for caution in comparison.cautions:
        yield printable(caution)
