"""Calls that a user would write. Nothing runs this file: mypy reads it, so that the public types stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, assert_type

import precscope

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def profile_a_fit(model: object, x: NDArray[np.float32]) -> None:
    with precscope.profile(model, "runs/mnist") as session:
        assert_type(session, precscope.Session)
    with precscope.profile(model, Path("runs") / "mnist", every=10, layers=["encoder/.*"], overwrite=True):
        pass


def profile_by_a_callback(path: Path) -> list[precscope.Callback]:
    return [precscope.Callback("runs/mnist", every=10), precscope.Callback(path, options="own.yaml", overwrite=True)]


def read_a_run(path: Path) -> str:
    try:
        run = assert_type(precscope.open_run(path), precscope.Run)
        kernels = run.find(layer="dense", kind="weight")
        assert_type(run.statistics(sample=0, tensor=kernels[0].index).absmax, float | None)
    except precscope.RunDirectoryError as error:
        return str(error)
    return precscope.__version__


def options() -> precscope.Options:
    return precscope.Options(overhead_budget=0.01, layer_types=("Dense",))


def catch_all(error: BaseException) -> bool:
    return isinstance(error, precscope.PrecScopeError)


def apply_a_policy(model: object, path: Path) -> object:
    with precscope.policy_scope(path) as scope:
        pass
    applied = precscope.apply_policy(model, "policy.yaml", optimizer=None)
    assert_type(applied.wrapped, bool)
    return scope.model
