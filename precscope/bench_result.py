"""What a bench measured: one training under several dtype policies, round by round."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from precscope.json_text import json_text
from precscope.spread import Spread, spread_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BENCH_FORMAT", "BENCH_VERSION", "BenchResult", "PolicyResult", "bench_json", "bench_result"]

BENCH_FORMAT, BENCH_VERSION = "precscope-bench", 1


@dataclass(frozen=True)
class PolicyResult:
    """One policy's training.

    Attributes:
        policy: Name of the dtype policy that was set before the build function ran.
        error: Why there are no figures, or fewer than asked for; None where all went well.
        notices: What to know about the figures.
        model: Name of the model.
        parameters: Number of its weights' elements.
        batch: Examples in a batch; None where the first input has no batch dimension.
        device: "GPU:0" or "CPU:0".
        build_s: Time that the build function took, in seconds.
        first_step_s: Time of the first step, which traces and compiles.
        round_step_ns: Mean time of a step, of each round.
        step_time_ms: Median and quartiles of `round_step_ns`, in milliseconds.
        examples_per_s: At the median step time.
        ratio_to_float32: The median over that of float32; None without one. Below 1 is faster.
        peak_memory_bytes: Most memory of plain steps.
        memory_source: "allocator" (TensorFlow's account of the GPU's memory, weights included) or "resident" (the
            process' memory on the host, code and libraries included).
        memory_ratio_to_float32: Peak memory over that of float32.
        steps: Steps that ran, those before the first round included.
        steps_applied: Of them, those whose update was applied; None where the optimizer does not tell.
        loss: Keras' running mean of the loss after the last step; None where it was not seen.
    """

    policy: str
    error: str | None = None
    notices: tuple[str, ...] = ()
    model: str | None = None
    parameters: int | None = None
    batch: int | None = None
    device: str | None = None
    build_s: float | None = None
    first_step_s: float | None = None
    round_step_ns: tuple[int, ...] = ()
    step_time_ms: Spread | None = None
    examples_per_s: float | None = None
    ratio_to_float32: float | None = None
    peak_memory_bytes: int | None = None
    memory_source: Literal["allocator", "resident"] | None = None
    memory_ratio_to_float32: float | None = None
    steps: int = 0
    steps_applied: int | None = None
    loss: float | None = None


@dataclass(frozen=True)
class BenchResult:
    """A bench.

    Attributes:
        entry: The build function as it was named.
        steps: Steps in a round.
        repeats: Rounds of each policy.
        warm_up: Steps before the first round.
        policies: One result a policy, in the order asked for.
        software: Versions by package name, and "python".
        hardware: platform, cpu, cpu_count, memory_bytes and gpus.
    """

    entry: str
    steps: int
    repeats: int
    warm_up: int
    policies: tuple[PolicyResult, ...]
    software: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, object] = field(default_factory=dict)


def bench_json(result: BenchResult) -> str:
    """Return the bench as JSON, as docs/bench.md describes it."""
    return json_text(BENCH_FORMAT, BENCH_VERSION, result)


def bench_result(
    entry: str,
    shape: tuple[int, int, int],
    measured: Sequence[PolicyResult],
    software: dict[str, str],
    hardware: dict[str, object],
) -> BenchResult:
    """Return a bench with all that follows from what was `measured`: quartiles, examples a second, ratios.

    Args:
        entry: The build function as it was named.
        shape: Steps in a round, rounds of each policy, and steps before the first.
        measured: One result a policy; what is derived may be missing.
        software: Versions by package name.
        hardware: The machine.
    """
    results = [_with_step_time(result) for result in measured]
    reference = next((result for result in results if result.policy == "float32"), None)
    compared = tuple(_with_ratios(result, reference) for result in results)
    return BenchResult(entry, *shape, compared, software, hardware)


def _with_step_time(result: PolicyResult) -> PolicyResult:
    spread = spread_of([time_ns / 1e6 for time_ns in result.round_step_ns])
    if spread is None:
        return result
    rate = None if result.batch is None or not spread.median else 1e3 * result.batch / spread.median
    return replace(result, step_time_ms=spread, examples_per_s=rate)


def _with_ratios(result: PolicyResult, reference: PolicyResult | None) -> PolicyResult:
    if reference is None:
        return result
    time_ratio = memory_ratio = None
    if result.step_time_ms and reference.step_time_ms:
        time_ratio = result.step_time_ms.median / reference.step_time_ms.median
    if result.peak_memory_bytes and reference.peak_memory_bytes and result.memory_source == reference.memory_source:
        memory_ratio = result.peak_memory_bytes / reference.peak_memory_bytes
    return replace(result, ratio_to_float32=time_ratio, memory_ratio_to_float32=memory_ratio)
