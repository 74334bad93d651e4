"""The table that benchmarks/policies.py's lines become: the last line of a case counts, and what is slower is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from precscope.bench_result import PolicyResult, bench_json, bench_result
from precscope.entry_point import load_entry_point

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
HARDWARE = {"gpus": [{"name": "NVIDIA H100"}]}
SOFTWARE = {"tensorflow": "2.21.0", "keras": "3.15.1"}


def line(case, **times_ms):
    """A case whose rounds took so many milliseconds by policy; None for a policy that failed."""
    policies = [
        PolicyResult(name, error="Out of memory.")
        if times is None
        else PolicyResult(
            name,
            round_step_ns=tuple(int(time * 1e6) for time in times),
            first_step_s=20.0,
            peak_memory_bytes=2**30,
            memory_source="allocator",
        )
        for name, times in times_ms.items()
    ]
    result = json.loads(bench_json(bench_result("x:y", (20, 3, 3), policies, SOFTWARE, HARDWARE)))
    return {"case": case, "title": case.upper(), **result, "small": False}


@pytest.fixture
def table():
    return load_entry_point(f"{FOLDER}/policies_table.py:table")


def test_rows_and_what_is_slower(table):
    cases = [
        line("mlp", float32=(9.0, 9.0, 9.0)),
        line("mlp", float32=(1.0, 1.1, 1.2), mixed_float16=(1.3, 1.4, 1.5), mixed_bfloat16=(1.0, 1.2, 1.3)),
        line("net", float32=(4.0, 4.0, 4.0), mixed_float16=(2.0, 2.0, 2.0), mixed_bfloat16=None),
    ]
    lines = table(cases)
    assert lines[0].startswith("NVIDIA H100, TensorFlow 2.21.0, Keras 3.15.1. A step is the median")
    assert lines[1] == "MLP: 3 x 20, NET: 3 x 20."
    assert "| MLP | float32 | 1.10 | 1.05 to 1.15 | 1.00 | 1,024 | 1.00 | 20.0 |" in lines
    assert "| NET | mixed_float16 | 2.00 | 2.00 to 2.00 | 0.50 | 1,024 | 1.00 | 20.0 |" in lines
    assert "| NET | mixed_bfloat16 | failed: Out of memory. | | | | | |" in lines
    assert lines[-2:] == [
        "- **Slower than float32:** MLP in mixed_float16, 1.27 times.",
        "- No difference beyond the spread: MLP in mixed_bfloat16.",
    ]
    assert sum("| MLP | float32" in item for item in lines) == 1


def test_where_nothing_is_slower_or_nothing_was_measured(table):
    cases = [line("net", float32=(4.0,), mixed_float16=(2.0,))]
    assert table(cases)[-1] == "Mixed precision is faster in every one of these cases."
    assert table([]) == ["Nothing was measured."]


def test_every_case_has_its_function():
    cases = load_entry_point(f"{FOLDER}/policies.py:main").__globals__["CASES"]
    assert [case.name for case in cases][-1] == "resnet50-128"  # it compiles longest
    for case in cases:
        assert callable(load_entry_point(f"{FOLDER}/policies.py:{case.function}"))
