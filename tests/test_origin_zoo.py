"""A quick subset of `benchmarks/origin.py`: labelled cases, the origin of which is to be right and the step exact."""

from __future__ import annotations

import pytest

from benchmarks.origin import score
from tests.zoo.animals import case_named


@pytest.mark.parametrize("name", ["exp_12", "softmax_head"])
def test_layer_pass_and_step_are_those_of_the_label(name: str) -> None:
    result = score(case_named(name), steps=6)
    assert result.is_right, result.origin
    assert result.step_is_exact, result.origin
