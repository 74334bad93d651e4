"""Verifying a run: with the model of its session, or with one that a user's function builds."""

from __future__ import annotations

import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import keras

from precscope.advice import Evidence
from precscope.advice.proposal import default_policy, policy_of_run
from precscope.errors import AnotherModelError, PolicyError, PrecScopeError
from precscope.policy_file import write_policy
from precscope.probes.model_entry import build_training
from precscope.probes.verify import verify_model
from precscope.reader import open_run
from precscope.verification import write_verification

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from precscope.reader import Run
    from precscope.verification import Verification

__all__ = ["POLICY_FILE", "progress_line", "verify_and_write", "verify_entry"]

#: The policy beside the verification, in the run directory.
POLICY_FILE = "policy.yaml"


def verify_and_write(model: Any, run_dir: str | os.PathLike[str], **options: Any) -> Verification:
    """Verify the run in `run_dir` with `model`, and write verification and policy into the run directory.

    Args:
        model: The run's model, built and compiled.
        run_dir: The run directory.
        **options: As for `precscope.probes.verify.verify_model`.

    Raises:
        PrecScopeError: It cannot be verified; the message says why.
    """
    run = open_run(run_dir)
    _require_writable(run.path)
    try:
        verification = verify_model(model, run, **options)
    except AnotherModelError as error:
        raise PolicyError(_another_model(error, run)) from None
    write_verification(run.path, verification)
    write_policy(policy_of_run(open_run(run.path)), run.path / POLICY_FILE, overwrite=True)
    return verification


def verify_entry(entry: str, run_dir: Path, weights: Path | None = None, **options: Any) -> Verification:
    """Verify the run in `run_dir` with the model that the user's function `entry` builds.

    Keras' global policy is the run's default while the function is called.

    Args:
        entry: The function, as `MODULE:FUNCTION`.
        run_dir: The run directory.
        weights: A file for `model.load_weights`.
        **options: As for `precscope.probes.verify.verify_model`.

    Raises:
        PrecScopeError: It cannot be verified; the message says why.
    """
    run = open_run(run_dir)  # before the model is built, which takes longer
    _require_writable(run.path)
    before = keras.config.dtype_policy()
    with suppress(ValueError):  # a policy of the user's own making: the function sets it
        keras.config.set_dtype_policy(default_policy(Evidence(run)))
    try:
        built = build_training(entry)
    finally:
        keras.config.set_dtype_policy(before)
    if weights is not None:
        try:
            built.model.load_weights(weights)
        except (OSError, ValueError) as error:
            raise PrecScopeError(
                f"The weights in '{weights}' cannot be loaded: {' '.join(str(error).split())}"
            ) from None
    given = {"dataset": built.dataset, "optimizer": built.optimizer, "step": built.step}
    return verify_and_write(built.model, run.path, **given, **options)


def _require_writable(directory: Path) -> None:
    """Find out before the work is done whether its outcome can be written."""
    probe = directory / f"{POLICY_FILE}.part"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise PrecScopeError(
            f"The outcome of verify goes into the run directory '{directory}', and that cannot be written: "
            f"{error.strerror}. Verify a copy of it that you may write."
        ) from error


def _another_model(error: AnotherModelError, run: Run) -> str:
    model = run.record.model
    return (
        f"The model is not the one that the run '{run.path}' was made with, {model.get('name')!r} "
        f"({model.get('class')}): {error.differences} Give the model that was trained, built in the same way."
    )


@contextmanager
def progress_line() -> Iterator[Callable[[int, int], None]]:
    """Yield a `report` for `verify_model` that keeps one line on a terminal up to date; silent elsewhere."""

    def write(text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{text}\x1b[K")
            sys.stderr.flush()

    try:
        yield lambda done, left: write(f"PrecScope: {done} sets of layers replayed, at most {left} left ")
    finally:
        write("")
