"""The compatibility matrix: a quick part of it, that its judge can say no, and that its page is what was measured."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest

from precscope.probes import recorder
from tests.compatibility import matrix, results
from tests.compatibility.catalog import rows
from tests.compatibility.configuration import CONFIGURATIONS, Configuration, Training, compiled, fit, noise
from tests.compatibility.judge import Outcome, difference, judge
from tests.compatibility.page import KNOWN_FAILURES, failures, page

if TYPE_CHECKING:
    from pathlib import Path

QUICK = [configuration for configuration in CONFIGURATIONS.values() if configuration.quick]


@pytest.mark.parametrize("configuration", QUICK, ids=lambda configuration: configuration.name)
def test_a_quick_part_of_the_matrix(configuration: Configuration) -> None:
    policy = "mixed_float16" if "mixed_float16" in configuration.policies else configuration.policies[0]
    record = judge(configuration, policy)
    assert record["faults"] == []
    assert record["passed"]
    assert record["layers"] > 0 < record["forward"]


def perceptron() -> Training:
    stack = [keras.layers.Dense(3, "tanh", name="hidden"), keras.layers.Flatten(), keras.layers.Dense(1, name="head")]
    return fit(compiled(keras.Sequential([keras.Input((4,)), *stack])), noise(12, 4), noise(12, 1))


def test_the_judge_notices_what_it_is_there_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tap that changes values, one that records nothing, one that stays behind: each is a fault by name."""
    record = recorder.Recorder.record

    def bent(self: Any, key: Any, x: Any, note: str | None = None) -> Any:
        if key.layer == "hidden" and key.kind == "gradient":
            return x  # not recorded, and no reason is given but that none arrived
        return 1.5 * record(self, key, x, note)

    monkeypatch.setattr(recorder.Recorder, "record", bent)
    verdict = judge(Configuration("perceptron", "test", perceptron), "float32")
    assert not verdict["passed"]
    assert any("weights differ by" in fault for fault in verdict["faults"])
    assert any("hidden (Dense): gradient is unexpectedly not recorded: no gradient" in f for f in verdict["faults"])
    assert verdict["reasons"]["forward: it only rearranges its input"] == 1


def test_what_keras_refuses_must_be_refused_in_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> Training:
        stack = [keras.layers.Dense(3), keras.layers.Activation(lambda x: keras.ops.matmul(x, x))]
        return fit(compiled(keras.Sequential([*stack, keras.layers.Dense(1)])), noise(8, 4), noise(8, 1))

    refused = Configuration("refused", "test", build, refused="Dimensions must be equal")
    record = judge(refused, "float32")
    assert record["faults"] == []
    assert record["passed"]

    assert judge(Configuration("trains", "test", perceptron, refused="anything"), "float32")["faults"] == [
        "trains, though Keras was to say: anything"
    ]

    def other(*arguments: Any) -> None:
        raise TypeError("another error")

    monkeypatch.setattr("tests.compatibility.judge._watched", other)
    faults = judge(refused, "float32")["faults"]
    assert len(faults) == 2
    assert "with it TypeError: another error" in faults[1]


def test_differences_are_shares_of_the_way_that_weights_went() -> None:
    def outcome(weights: list[float], losses: list[float], seed: int = 3) -> Outcome:
        arrays = {"w": np.array(weights, np.float32), "seed": np.array([seed])}
        return Outcome(np.array(losses), arrays, {"w": np.zeros(2, np.float32), "seed": np.array([0])}, 0.0)

    plain = outcome([3.0, 4.0], [2.0, 1.0])
    assert difference(plain, outcome([3.0, 4.0], [2.0, 1.0])) == {"weights": 0.0, "losses": 0.0, "integers": []}
    found = difference(plain, outcome([3.0, 4.5], [2.2, 1.0], seed=4))
    assert found["weights"] == pytest.approx(0.1)
    assert found["losses"] == pytest.approx(0.1)
    assert found["integers"] == ["seed"]
    assert np.isnan(difference(plain, outcome([3.0, 4.0], [2.0]))["losses"])  # a step is missing: within no bound


def line(name: str, **fields: Any) -> dict[str, Any]:
    return {"device": "cpu", "group": "g", "name": name, "policy": "float32", "faults": [], "ended_unix_s": 5} | fields


def test_results_survive_an_interruption_and_the_last_line_counts(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    results.append(path, line("a", passed=False))
    results.append(path, line("a", passed=True))
    with path.open("a") as file:
        file.write('{"device": "cpu", "gro')  # killed while it wrote
    results.append(path, line("b", passed=True))
    found = results.read(path)
    assert [(row[2], record["passed"]) for row, record in found.items()] == [("a", True), ("b", True)]
    assert json.loads(path.read_text().splitlines()[-1])["name"] == "b"


def test_a_row_is_claimed_by_one_process_and_a_crash_is_known(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    row = ("cpu", "g", "a", "float32")
    code = (
        "import os, sys, pathlib; sys.path.insert(0, '.'); from tests.compatibility import results\n"
        f"with results.claimed(pathlib.Path({str(path)!r}), {row!r}) as claim: print(claim); sys.stdout.flush(); DIE"
    )

    def other(ending: str) -> str:
        command = [sys.executable, "-c", code.replace("DIE", ending)]
        return subprocess.run(command, cwd=matrix.ROOT, capture_output=True, text=True, check=False).stdout.strip()

    with results.claimed(path, row) as claim:
        assert claim == results.Claim(None)
        assert other("pass") == "None"
    assert other("os._exit(9)") == "Claim(died_unix_s=None)"
    with results.claimed(path, row) as claim:
        assert claim is not None
        assert claim.died_unix_s is not None
    assert other("pass") == "Claim(died_unix_s=None)"  # it came to an end since


def test_what_is_run_again() -> None:
    def is_due(known: dict[str, Any] | None, **options: Any) -> bool:
        return matrix._is_due(known, argparse.Namespace(**{"again": False, "failed": False, "worker": 9.0} | options))

    assert is_due(None)
    assert not is_due(line("a", passed=False))
    assert is_due(line("a", passed=False), failed=True)
    assert not is_due(line("a", passed=True), failed=True)
    assert is_due(line("a", passed=True), again=True)
    assert not is_due(line("a", passed=False, ended_unix_s=9), again=True, failed=True)  # by this very run


def test_the_page_tells_what_was_not_run_and_what_failed() -> None:
    configuration, policy = rows("LSTM/mixed_float16")[0]
    row = {"group": configuration.group, "name": configuration.name, "policy": policy, "faults": ["it | broke"]}
    device = {"device_name": "one GPU", "versions": "Keras 3"}
    text = page({("gpu", configuration.group, configuration.name, policy): row | device | {"passed": False}})
    assert "- **CPU:** not run yet." in text
    assert "- **GPU:** 1 configurations, 1 rows: 0 passed, 1 failed" in text
    assert "| not run | **failed:** it / broke |" in text
    assert failures({("gpu", "g", "n", "p"): row | {"passed": False}}) == ["gpu / g / n / p: it | broke"]


def test_the_page_in_the_docs_is_that_of_the_results(repository: Path) -> None:
    records = results.read(repository / "docs" / "data" / "compatibility.jsonl")
    made_with = {record["versions"] for record in records.values()}
    if not any(f"Keras {keras.__version__}" in versions for versions in made_with):
        pytest.skip(f"The page lists what {made_with} has; this is Keras {keras.__version__}.")
    assert (repository / "docs" / "compatibility.md").read_text(encoding="utf-8") == page(records)
    assert {row for row, record in records.items() if record["passed"] is False} == set(KNOWN_FAILURES)
    assert len({row[1:3] for row, record in records.items() if record["passed"]}) >= 60


def test_the_matrix_holds_what_it_must() -> None:
    names = {(configuration.group, configuration.name) for configuration, _ in rows(extended=True)}
    assert len({(configuration.group, configuration.name) for configuration, _ in rows()}) >= 60
    applications = {name for name, kind in vars(keras.applications).items() if callable(kind)}
    assert {name for group, name in names if group == "keras.applications"} == applications
    optimizers = {name for name, kind in vars(keras.optimizers).items() if isinstance(kind, type)}
    assert optimizers - {"Optimizer", "OptimizerMap"} == {name for group, name in names if group == "Optimizers"}


def test_results_of_another_machine_are_merged(tmp_path: Path) -> None:
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    for record in (line("a", passed=True), line("b", passed=False), line("c", passed=True, ended_unix_s=9)):
        results.append(here, record)
    news = [
        line("a", passed=None, skipped_for="x is not installed", ended_unix_s=7),  # known how it comes out
        line("b", passed=True, ended_unix_s=7),
        line("c", passed=False, ended_unix_s=7),  # older
        line("a", passed=True, device="gpu", ended_unix_s=7),
    ]
    for record in news:
        results.append(there, record)
    assert results.merge(there, here) == 2
    found = results.read(here)
    assert {(*row[::2],): record["passed"] for row, record in found.items()} == {
        ("cpu", "a"): True,
        ("cpu", "b"): True,
        ("cpu", "c"): True,
        ("gpu", "a"): True,
    }
    assert results.merge(there, here) == 0


def test_each_job_has_its_device_and_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(*words: str) -> list[tuple[str | None, str]]:
        found = matrix.environments(matrix._parser().parse_args(words))
        return [(one.get("CUDA_VISIBLE_DEVICES"), one["TF_NUM_INTRAOP_THREADS"]) for one in found]

    monkeypatch.setattr(matrix, "cpu_cores", lambda: 32)
    for name in ("CUDA_VISIBLE_DEVICES", "TF_NUM_INTRAOP_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert seen("--jobs", "2", "--cpu-jobs", "6") == [(None, "4")] * 2 + [("", "4")] * 6
    assert seen("--jobs", "3", "--gpus", "2", "--threads", "1") == [("0", "1"), ("1", "1"), ("0", "1")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [device for device, _ in seen("--jobs", "2", "--gpus", "2", "--cpu-jobs", "1")] == ["3", "5", ""]


def test_the_longest_rows_are_begun_first_and_none_after_the_deadline(tmp_path: Path) -> None:
    queue = rows("GAN|run_eagerly")
    seconds = {"GAN whose model.optimizer is one of two": 9.0, "GAN with two optimizers, Keras' own unused": 3.0}
    known: Any = {
        ("gpu", c.group, c.name, policy): {"seconds": seconds[c.name]} for c, policy in queue if c.name in seconds
    }
    order = matrix.in_order(queue, known)
    assert [c.name.split()[0] for c, _ in order] == ["run_eagerly", "GAN", "GAN", "GAN", "GAN"]  # unknown ones first
    assert [known["gpu", c.group, c.name, policy]["seconds"] for c, policy in order[1:]] == [9.0, 3.0, 3.0, 3.0]
    assert [policy for _, policy in order[2:]] == ["float32", "mixed_float16", "mixed_bfloat16"]
    path = tmp_path / "results.jsonl"
    late = matrix._parser().parse_args(["--results", str(path), "--deadline", "60", "--worker", "1", "--jobs", "1"])
    assert matrix.work(late) == 0
    assert not path.exists()


def test_a_package_that_cannot_be_imported_skips_its_rows_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made_for_another_keras.py").write_text("from keras import what_is_gone")
    monkeypatch.syspath_prepend(tmp_path)
    outcome = matrix._outcome(Configuration("n", "g", perceptron, needs="made_for_another_keras"), "float32")
    assert outcome["passed"] is None
    assert outcome["skipped_for"].startswith("made_for_another_keras cannot be imported here: ImportError: cannot")
    assert matrix._outcome(Configuration("n", "g", perceptron, needs="no_such"), "float32")["skipped_for"] == (
        "no_such is not installed"
    )
