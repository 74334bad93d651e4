"""How often the verdict on skipped steps is right: 200 generated histories whose cause is known.

    python benchmarks/loss_scale_verdicts.py [--runs 200] [--seed 0]

Each history is a training under Keras' rule for the loss scale. Its largest gradient wanders from step to step; a step
is skipped where gradient times scale leaves float16, or where something is wrong. The verdict sees what a session
would: the counters at a few moments (the real poll's schedule), and the room of the gradients in a few sampled steps.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass

import numpy as np

from precscope.advice.loss_scale_verdict import FAULTS, Cause, ForwardFault, SampledStep, judge_skips, main_cause
from precscope.formats import FORMATS
from precscope.loss_scale_history import scale_history
from precscope.probes.loss_scale_poll import PollSchedule
from precscope.records import LossScaleRecord

#: Kinds of history, and what the verdict on one may be. Of a healthy one each stretch must be called healthy; where it
#: descends from the initial scale, the first must be called a search; where it only grew, nothing may be skipped.
KINDS: dict[str, set[Cause | None]] = {
    "growth": {"probe", "spike", "search", None},
    "search": {"search"},
    "any_scale": {"any_scale"},
    "collapse": {"collapse"},
    "bad_batch": {"bad_batch"},
    "static": {None},
}
_MAX_BITS = float(np.log2(FORMATS["float16"].max))


@dataclass(frozen=True)
class Generated:
    """A history and why its steps were skipped."""

    kind: str
    looks: tuple[LossScaleRecord, ...]
    samples: tuple[SampledStep, ...]
    growth_steps: int | None


def generate(kind: str, random: np.random.Generator) -> Generated:
    """Train one run of `kind`: the largest gradient in bits wanders, and faults are added."""
    steps = int(random.integers(800, 6000))
    growth = int(random.choice([200, 500, 2000]))
    level = random.uniform(-6, 0) if kind != "search" else random.uniform(2, 10)
    if kind == "static":
        level = -12.0
    wander = np.cumsum(random.normal(0, 0.01, steps)) - np.linspace(0, random.uniform(0, 2), steps)
    gradient_bits = level + wander + random.normal(0, 0.25, steps)
    if kind in ("any_scale", "collapse", "bad_batch", "static"):
        gradient_bits -= 8  # far from where the scale itself would overflow
        growth = 2000 if kind != "static" else growth
    broken = np.zeros(steps, bool)
    begin = int(random.integers(300, steps - 120))
    if kind == "any_scale":
        broken[steps - int(random.integers(10, 15)) :] = True
    elif kind == "collapse":
        broken[begin : begin + int(random.integers(30, 120))] = True
    elif kind == "bad_batch":
        broken[random.integers(100, steps - 100, int(random.integers(1, 6)))] = True
    return _train(kind, gradient_bits, broken, growth, random)


def _train(kind: str, gradient_bits, broken, growth: int, random: np.random.Generator) -> Generated:
    dynamic, scale, counter, skips = kind != "static", 2.0**15, 0, 0
    schedule, step_ns = PollSchedule(), int(random.choice([1, 10, 50])) * 1_000_000
    sampled = set(random.integers(1, len(broken), len(broken) // 60).tolist())
    looks, samples = [], []
    for step in range(len(broken) + 1):
        if step in (0, len(broken)) or (dynamic and step >= schedule.next_step) or step - 1 in sampled:
            looks.append(LossScaleRecord(step, scale, step - skips, skips, counter if dynamic else None))
            schedule.looked(step, step * step_ns)
        if step == len(broken):
            break
        room = _MAX_BITS - float(gradient_bits[step]) - float(np.log2(scale)) if scale > 0 else 0.0
        skipped = bool(dynamic and (broken[step] or room < 0))
        if step in sampled:
            # A sample sees the gradients that are recorded, not the largest of all.
            seen_bits = None if skipped else room + abs(float(random.normal(0, 0.5)))
            fault: ForwardFault | None = "data" if kind == "bad_batch" and broken[step] else None
            samples.append(SampledStep(step, skipped, scale, fault, seen_bits))
        if not dynamic:
            continue
        if skipped:
            scale, counter, skips = float(np.float32(scale / 2)), 0, skips + 1
        elif counter == growth - 1:
            scale, counter = scale * 2, 0
        else:
            counter += 1
    return Generated(kind, tuple(looks), tuple(samples), growth if dynamic else None)


def main() -> None:
    """Print how many verdicts are right, and which are not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    right, false_alarms, confusions = judge_generated(arguments.runs, arguments.seed)
    print(f"right: {right} of {arguments.runs} ({right / arguments.runs:.1%})")
    print(f"healthy ones called faulty: {false_alarms}")
    for (kind, verdict), count in sorted(confusions.items(), key=lambda item: -item[1]):
        print(f"  {kind:10} called {verdict}: {count}")


def judge_generated(runs: int, seed: int) -> tuple[int, int, Counter[tuple[str, Cause | None]]]:
    """Return how many verdicts are right, how many healthy runs were called faulty, and verdicts by kind."""
    random = np.random.default_rng(seed)
    verdicts: Counter[tuple[str, Cause | None]] = Counter()
    for number in range(runs):
        run = generate(list(KINDS)[number % len(KINDS)], random)
        stretches = judge_skips(scale_history(run.looks, run.growth_steps), run.samples)
        cause = main_cause(stretches)
        first = stretches[0].cause if stretches else None
        verdicts[run.kind, first if run.kind == "search" and cause not in FAULTS else cause] += 1
    right = sum(count for (kind, cause), count in verdicts.items() if cause in KINDS[kind])
    healthy = ("growth", "search", "static")
    alarms = sum(count for (kind, cause), count in verdicts.items() if kind in healthy and cause in FAULTS)
    return right, alarms, verdicts


if __name__ == "__main__":
    main()
