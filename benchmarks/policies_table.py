"""The Markdown table of docs/benchmarks.md, section "Policies", from the JSON lines of benchmarks/policies.py.

    python benchmarks/policies_table.py policies.jsonl

Of a case that was measured more than once the last line counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HEAD = (
    "| training | policy | step, ms | quartiles, ms | / float32 | peak memory, MiB | / float32 | first step, s |",
    "|---|---|---:|---:|---:|---:|---:|---:|",
)
SOURCES = {"allocator": "TensorFlow's allocator on the GPU", "resident": "the process on the host, libraries included"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path, help="what benchmarks/policies.py --out wrote")
    text = parser.parse_args().lines.read_text(encoding="utf-8")
    print("\n".join(table([json.loads(line) for line in text.splitlines() if line.strip()])))
    return 0


def table(cases: list[dict[str, Any]]) -> list[str]:
    """Return the section's lines."""
    latest = list({case["case"]: case for case in cases}.values())
    if not latest:
        return ["Nothing was measured."]
    rows = [row(case, policy) for case in latest for policy in case["policies"]]
    return [*circumstances(latest), "", *HEAD, *rows, "", *slower(latest)]


def circumstances(cases: list[dict[str, Any]]) -> list[str]:
    machines = dict.fromkeys(machine(case) for case in cases)
    sources = {policy["memory_source"] for case in cases for policy in case["policies"] if policy["memory_source"]}
    lines = [f"{' and '.join(machines)}. A step is the median over rounds, each the mean of its steps:"]
    rounds = ", ".join(f"{case['title']}: {case['repeats']} x {case['steps']}" for case in cases)
    lines += [f"{rounds}.", f"Memory is that of {' and '.join(SOURCES[source] for source in sorted(sources))}."]
    if any(case["small"] for case in cases):
        lines.append("**A rehearsal with tiny shapes: these figures say nothing.**")
    return lines


def machine(case: dict[str, Any]) -> str:
    hardware, software = case["hardware"], case["software"]
    device = ", ".join(str(gpu["name"]) for gpu in hardware.get("gpus") or ()) or f"No GPU, {hardware.get('cpu')}"
    return f"{device}, TensorFlow {software.get('tensorflow')}, Keras {software.get('keras')}"


def row(case: dict[str, Any], policy: dict[str, Any]) -> str:
    spread, memory = policy["step_time_ms"], policy["peak_memory_bytes"]
    if spread is None:
        return f"| {case['title']} | {policy['policy']} | failed: {policy['error']} | | | | | |"
    cells = [
        case["title"],
        policy["policy"],
        three_digits(spread["median"]),
        f"{three_digits(spread['lower_quartile'])} to {three_digits(spread['upper_quartile'])}",
        ratio(policy["ratio_to_float32"]),
        "" if memory is None else f"{memory / 2**20:,.0f}",
        ratio(policy["memory_ratio_to_float32"]),
        f"{policy['first_step_s']:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def slower(cases: list[dict[str, Any]]) -> list[str]:
    """Say where mixed precision is slower, and where there is no difference beyond the spread."""
    lines = []
    for case in cases:
        base = next((policy["step_time_ms"] for policy in case["policies"] if policy["policy"] == "float32"), None)
        for policy in case["policies"]:
            own = policy["step_time_ms"]
            if base is None or own is None or policy["policy"] == "float32":
                continue
            times = policy["ratio_to_float32"]
            if own["lower_quartile"] > base["upper_quartile"]:
                lines.append(f"- **Slower than float32:** {case['title']} in {policy['policy']}, {times:.2f} times.")
            elif own["upper_quartile"] >= base["lower_quartile"]:
                lines.append(f"- No difference beyond the spread: {case['title']} in {policy['policy']}.")
    return lines or ["Mixed precision is faster in every one of these cases."]


if __name__ == "__main__":
    sys.exit(main())
