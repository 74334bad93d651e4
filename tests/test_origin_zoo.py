"""A quick subset of `benchmarks/origin.py`: labelled cases, the origin of which is to be right and the step exact."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.zoo.animals import case_named

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "origin.py"


@pytest.mark.parametrize("name", ["exp_12", "softmax_head"])
def test_layer_pass_and_step_are_those_of_the_label(name: str) -> None:
    result = runpy.run_path(str(BENCHMARK))["score"](case_named(name), steps=6)
    assert result.is_right, result.origin
    assert result.step_is_exact, result.origin
