"""All cases of the zoo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.zoo import (
    attention,
    fifth,
    fourth,
    healthy,
    integers,
    norms,
    outputs,
    ranges,
    scaling,
    second,
    seventh,
    sixth,
    third,
    third_healthy,
)

if TYPE_CHECKING:
    from tests.zoo.case import Case

__all__ = ["ZOO", "case_named"]

ZOO: tuple[Case, ...] = (
    *ranges.CASES,
    *norms.CASES,
    *attention.CASES,
    *outputs.CASES,
    *integers.CASES,
    *scaling.CASES,
    *healthy.CASES,
    *second.CASES,
    *third.CASES,
    *third_healthy.CASES,
    *fourth.CASES,
    *fifth.CASES,
    *sixth.CASES,
    *seventh.CASES,
)


def case_named(name: str) -> Case:
    """Return the case called `name`."""
    return next(case for case in ZOO if case.name == name)
