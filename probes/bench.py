"""Training under several dtype policies side by side: a process each, kept alive, asked for rounds in turn.

One round of each policy follows the other, and every second time in the opposite order, so that what drifts (clocks,
temperature, other work on the machine) meets all policies alike.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from precscope.bench_result import BenchResult, PolicyResult, bench_result
from precscope.entry_point import split_entry_point
from precscope.probes.bench_process import BenchProcess, WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BENCH_POLICIES", "BenchPlan", "run_bench"]

#: The policies that are compared by default.
BENCH_POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")


@dataclass(frozen=True)
class BenchPlan:
    """What to measure.

    Attributes:
        entry: The build function, `MODULE:FUNCTION` or `FILE.py:FUNCTION`.
        policies: Names of dtype policies.
        steps: Steps in a round.
        repeats: Rounds of each policy.
        warm_up: Steps before the first round.
        timeout_s: How long a worker may take for one answer (building, compiling, a round); None for ever.
    """

    entry: str
    policies: tuple[str, ...] = BENCH_POLICIES
    steps: int = 20
    repeats: int = 5
    warm_up: int = 3
    timeout_s: float | None = None

    @property
    def units(self) -> int:
        """How often `run_bench` reports progress: building, compiling and each round, of each policy."""
        return len(self.policies) * (2 + self.repeats)


class _Lane:
    """One policy: its process, until that fails, and what it has said."""

    def __init__(self, plan: BenchPlan, policy: str, advance: Callable[[str, int], None]) -> None:
        self.policy = policy
        self.facts: dict[str, Any] = {}
        self.round_step_ns: list[int] = []
        self.error: WorkerError | None = None
        self._plan = plan
        self._advance = advance
        self._left = plan.units // len(plan.policies)
        self._process: BenchProcess | None = None

    def build(self) -> None:
        """Start the process and build the model."""
        self._process = BenchProcess(self._plan.entry, self.policy)
        self._step("building", "build")

    def compile(self) -> None:
        """Run the first steps."""
        self._step("compiling", "warm_up", steps=self._plan.warm_up)

    def round(self, number: int) -> None:
        """Run one round."""
        answer = self._step(f"round {number + 1} of {self._plan.repeats}", "round", steps=self._plan.steps)
        if "step_ns" in answer:
            self.round_step_ns.append(answer["step_ns"])

    def finish(self) -> None:
        """Ask for what only the end shows."""
        self._ask("summary")

    def end(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.end()

    def result(self) -> PolicyResult:
        """Return all that was said."""
        error = None if self.error is None else str(self.error)
        facts = {name: value for name, value in self.facts.items() if name in PolicyResult.__dataclass_fields__}
        facts["notices"] = tuple(facts.get("notices", ()))
        return PolicyResult(self.policy, error, round_step_ns=tuple(self.round_step_ns), **facts)

    def _step(self, words: str, do: str, **what: int) -> dict[str, Any]:
        if self.error is not None:
            return {}
        self._advance(f"{self.policy}: {words}", 0)
        answer = self._ask(do, **what)
        units = self._left if self.error is not None else 1
        self._left -= units
        self._advance(f"{self.policy}: {words}", units)
        return answer

    def _ask(self, do: str, **what: int) -> dict[str, Any]:
        if self.error is not None or self._process is None:
            return {}
        try:
            answer = self._process.ask(self._plan.timeout_s, do, **what)
        except WorkerError as error:
            self.error = error
            return {}
        self.facts |= answer
        return answer


def run_bench(plan: BenchPlan, advance: Callable[[str, int], None] = lambda words, units: None) -> BenchResult:
    """Train under each policy of `plan` and return what was measured, failures included.

    Args:
        plan: What to measure.
        advance: Told what is being done, and how many of `plan.units` are done since the last call.

    Raises:
        EntryPointError: The entry point's form is wrong or its file does not exist.
        WorkerError: There is no such module or function.
    """
    split_entry_point(plan.entry)
    lanes = [_Lane(plan, policy, advance) for policy in plan.policies]
    try:
        with ThreadPoolExecutor(len(lanes)) as pool:  # loading TensorFlow takes seconds
            list(pool.map(_Lane.build, lanes))
        for error in (lane.error for lane in lanes):
            if error is not None and error.everywhere:
                raise error
        for lane in lanes:  # one after the other: XLA times kernels on the GPU to choose among them
            lane.compile()
        for number in range(plan.repeats):
            for lane in lanes if number % 2 == 0 else reversed(lanes):
                lane.round(number)
        for lane in lanes:
            lane.finish()
    finally:
        for lane in lanes:
            lane.end()
    facts: dict[str, Any] = next((lane.facts for lane in lanes if "software" in lane.facts), {})
    return bench_result(
        plan.entry,
        (plan.steps, plan.repeats, plan.warm_up),
        [lane.result() for lane in lanes],
        software=facts.get("software", {}),
        hardware=facts.get("hardware", {}),
    )
