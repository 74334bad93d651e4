"""Runs side by side: whether they did the same work, and what precision changed in time, memory and result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from precscope.errors import PrecScopeError
from precscope.json_text import json_text
from precscope.layer_comparison import LayerComparison, compare_layers
from precscope.run_summary import MEMORY_SOURCES, MemorySource, RunSummary, summarize
from precscope.same_work import Difference, circumstances, matched_layers, work_differences

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precscope.reader import Run

__all__ = ["COMPARISON_FORMAT", "COMPARISON_VERSION", "Comparison", "ComparisonError", "compare", "comparison_json"]

COMPARISON_FORMAT, COMPARISON_VERSION = "precscope-comparison", 1

_FEW_WINDOWS = 4
_REFERENCE_POLICY = "float32"


class ComparisonError(PrecScopeError):
    """There is nothing that could be compared."""


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side. Tuples inside hold one value a run, in the order of `runs`.

    Attributes:
        same_work: Whether model, optimizer and batch agree. Where not, there are no ratios and no layers.
        differences: In what the work differs.
        circumstances: What else differs and can move times: device, versions, XLA.
        runs: The runs' figures.
        reference: Index of the run that the others are compared with: the only one in float32, else the first.
        memory_source: Whose account the memory's ratios compare; None where the runs have none in common.
        layers: Device time by layer, the costliest first; empty where no run has it.
        cautions: What to know before believing the figures.
    """

    same_work: bool
    differences: tuple[Difference, ...]
    circumstances: tuple[Difference, ...]
    runs: tuple[RunSummary, ...]
    reference: int
    memory_source: MemorySource | None
    layers: tuple[LayerComparison, ...]
    cautions: tuple[str, ...]


def compare(runs: Sequence[Run], unreadable: Sequence[str] = ()) -> Comparison:
    """Compare two or more runs.

    Args:
        runs: The runs that could be read.
        unreadable: Why others could not.

    Raises:
        ComparisonError: Fewer than two runs are left that could be read and measured anything.
    """
    summaries = [summarize(run) for run in runs]
    empty = [
        f"Nothing was measured in '{summary.path}': no step times, memory, losses or results."
        for summary in summaries
        if summary.is_empty
    ]
    kept = [(run, summary) for run, summary in zip(runs, summaries, strict=True) if not summary.is_empty]
    left_out = [*unreadable, *empty]
    if len(kept) < 2:
        number = len(runs) + len(unreadable)
        have = f"got {number}" if not left_out else f"{len(kept)} of {number} can be used"
        raise ComparisonError(" ".join([f"A comparison needs at least two runs, {have}.", *left_out]))
    cautions = [f"Left out: {reason}" for reason in left_out]
    return _compare([run for run, _ in kept], [summary for _, summary in kept], cautions)


def comparison_json(comparison: Comparison) -> str:
    """Return the comparison as JSON, as docs/compare.md describes it."""
    return json_text(COMPARISON_FORMAT, COMPARISON_VERSION, comparison)


def _compare(runs: Sequence[Run], summaries: Sequence[RunSummary], cautions: Sequence[str]) -> Comparison:
    differences = work_differences(runs, summaries)
    matches = matched_layers(runs)
    reference = _reference(summaries)
    source = next((name for name in MEMORY_SOURCES if all(name in item.memory_bytes for item in summaries)), None)
    same_work = not differences
    if same_work:
        summaries = [_with_ratios(summary, summaries[reference], source) for summary in summaries]
    return Comparison(
        same_work=same_work,
        differences=differences,
        circumstances=circumstances(runs),
        runs=tuple(summaries),
        reference=reference,
        memory_source=source,
        layers=compare_layers(runs, matches, reference) if same_work and matches is not None else (),
        cautions=(*cautions, *_cautions(summaries, source)),
    )


def _reference(summaries: Sequence[RunSummary]) -> int:
    in_float32 = [place for place, summary in enumerate(summaries) if summary.policy == _REFERENCE_POLICY]
    return in_float32[0] if len(in_float32) == 1 else 0


def _with_ratios(summary: RunSummary, reference: RunSummary, source: MemorySource | None) -> RunSummary:
    time_ratio = memory_ratio = None
    if summary.step_time_ms and reference.step_time_ms and reference.step_time_ms.median:
        time_ratio = summary.step_time_ms.median / reference.step_time_ms.median
    if source is not None and reference.memory_bytes[source]:
        memory_ratio = summary.memory_bytes[source] / reference.memory_bytes[source]
    return replace(summary, time_ratio=time_ratio, memory_ratio=memory_ratio)


def _cautions(summaries: Sequence[RunSummary], source: MemorySource | None) -> list[str]:
    cautions = []
    for summary in summaries:
        if summary.status != "finished":
            cautions.append(f"'{summary.name}' did not finish ({summary.status}): its last figures are not its end.")
        if summary.step_time_ms is None:
            cautions.append(f"'{summary.name}' has no step times.")
        elif summary.step_time_ms.count < _FEW_WINDOWS:
            count = summary.step_time_ms.count
            windows = "window" if count == 1 else "windows"
            cautions.append(f"'{summary.name}' has {count} {windows} of timed steps: its quartiles say little.")
    if source is None and any(summary.memory_bytes for summary in summaries):
        cautions.append("Peak memory comes from different sources, so there is no ratio of it.")
    return cautions
