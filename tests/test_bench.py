"""The bench: real workers on a tiny model, workers that fail in every way, and what is printed."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner
from rich.cells import cell_len
from rich.console import Console

from precscope.bench_result import BenchResult, PolicyResult, bench_json, bench_result
from precscope.cli import main
from precscope.commands.demo import demo
from precscope.probes.bench import BenchPlan, run_bench
from precscope.probes.bench_process import BenchProcess, WorkerError
from precscope.reports.bench_view import bench_view
from precscope.reports.terminal_bench import print_bench

MIB = 2**20

BUILD = """
import os, signal, sys
import keras, numpy as np, tensorflow as tf

def build(examples=20):
    policy = keras.config.dtype_policy().name
    print("what a user prints is no answer")
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(1, dtype="float32")])
    model.compile("adam", "mse")
    x = np.ones((examples, 8), np.float32)
    if policy == "mixed_bfloat16":
        raise ValueError("no data for\\n" + policy)
    return model, tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(8)
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "training.py"
    path.write_text(BUILD)
    return path


def test_policies_are_timed_in_turn_and_a_failing_one_does_not_stop_the_others(module):
    """The whole way: three processes, of which one fails while it builds."""
    said = []
    plan = BenchPlan(f"{module}:build", steps=2, repeats=2, warm_up=1)
    result = run_bench(plan, lambda words, units: said.append((words, units)))

    full, half, failed = result.policies
    assert [policy.policy for policy in result.policies] == ["float32", "mixed_float16", "mixed_bfloat16"]
    for policy in (full, half):
        assert (policy.error, policy.batch, policy.parameters, policy.device) == (None, 8, 161, "CPU:0")
        assert len(policy.round_step_ns) == 2
        assert min(policy.round_step_ns) > 0
        assert (policy.steps, policy.memory_source) == (5, "resident")
        assert policy.peak_memory_bytes > 50 * MIB  # TensorFlow itself
    assert full.steps_applied == 5
    assert full.ratio_to_float32 == 1.0
    assert half.ratio_to_float32 == half.step_time_ms.median / full.step_time_ms.median
    assert failed.error == f"{module}:build raised ValueError: no data for mixed_bfloat16 (training.py:12)"
    assert failed.round_step_ns == ()
    assert result.software["keras"]

    assert sum(units for _, units in said) == plan.units
    rounds = [words for words, units in said if "round" in words and units]
    assert rounds == [
        "float32: round 1 of 2", "mixed_float16: round 1 of 2", "mixed_float16: round 2 of 2", "float32: round 2 of 2",
    ]  # fmt: skip


def let_workers_do(monkeypatch, code):
    """Replace workers by ones without a framework: each request runs `code` in a process of its own."""
    script = f"import sys, json, os, signal\nfor line in sys.stdin:\n    {code}\n"
    start = subprocess.Popen

    def fake(command, **options):
        assert command[1:3] == ["-m", "precscope.probes.bench_worker"]
        assert options["env"]["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
        return start([sys.executable, "-c", script], **options)

    monkeypatch.setattr("precscope.probes.bench_process.subprocess.Popen", fake)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("os._exit(7)", r"Its process ended with exit code 7\.$"),
        (
            "print('Killed: no memory', file=sys.stderr, flush=True); os._exit(9)",
            r"code 9\. Its last words: Killed: no",
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"was killed by SIGKILL \(the system may have run out of memory\)"),
        ("raise ValueError('x')", r"exit code 1\. Its last words: ValueError: x"),
        ("signal.pause()", r"It gave no answer within 1 s and was ended\."),
        ("print(json.dumps({'error': 'OOM'}), flush=True)", r"^OOM$"),
    ],
)
def test_a_worker_that_dies_or_hangs_says_how(monkeypatch, code, words):
    let_workers_do(monkeypatch, code)
    process = BenchProcess("any:thing", "float32")
    with pytest.raises(WorkerError, match=words):
        process.ask(1.0 if "pause" in code else 60.0, "build")
    assert process._process.poll() is not None  # nothing is left behind
    with pytest.raises(WorkerError, match="Its process has ended"):
        process.ask(1.0, "round", steps=1)


def test_a_worker_that_dies_between_rounds_keeps_its_figures(monkeypatch):
    answer = "print(json.dumps({'step_ns': 1000 * n}), flush=True)"
    let_workers_do(monkeypatch, f"n = globals().get('n', 0) + 1; os._exit(3) if n == 4 else {answer}")
    result = run_bench(BenchPlan("training:build", ("float32",), repeats=5))
    (policy,) = result.policies
    assert policy.round_step_ns == (3000,)
    assert "exit code 3" in policy.error
    assert any("Its figures are of 1 round." in sentence for _, sentence in bench_view(result).sentences)


@pytest.fixture
def keras():
    return pytest.importorskip("keras")


def build_with(monkeypatch, built, policy="float32"):
    """Run what a worker runs when it builds, with a user's function that returns (or raises) `built`."""
    from precscope.probes import bench_worker

    def build():
        if isinstance(built, BaseException):
            raise built
        return built() if callable(built) else built

    monkeypatch.setattr(bench_worker, "load_entry_point", lambda name: build)
    return bench_worker.build_training("my:build", policy)


def model_of(keras, compiled=True, policy=None):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, dtype=policy)])
    if compiled:
        model.compile("sgd", "mse")
    return model


def dataset_of(examples, batch=4, **options):
    import tensorflow as tf

    data = tf.ones((examples, 4)), tf.ones((examples, 1))
    return tf.data.Dataset.from_tensor_slices(data).batch(batch, **options)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda keras: None, r"my:build returned None\. Expected a compiled Keras model and a tf\.data\.Dataset"),
        (lambda keras: (1, 2, 3), r"returned a value of type tuple of 3\."),
        (lambda keras: ("model", dataset_of(4)), r"returned a value of type str as its model"),
        (
            lambda keras: (model_of(keras, compiled=False), dataset_of(4)),
            r"a model that is not compiled.*model\.compile",
        ),
        (lambda keras: (model_of(keras), [1, 2]), r"value of type list as its dataset.*from_tensor_slices"),
        (lambda keras: (model_of(keras), dataset_of(0)), r"The dataset is empty"),
        (
            lambda keras: RuntimeError("no GPU\nhere"),
            r"my:build raised RuntimeError: no GPU here \(test_bench\.py:\d+\)",
        ),
        (lambda keras: SystemExit("bye"), r"my:build raised SystemExit: bye"),
    ],
)
def test_a_build_function_that_returns_the_wrong_thing(keras, monkeypatch, make, words):
    from precscope.errors import PrecScopeError

    with pytest.raises(PrecScopeError, match=words):
        build_with(monkeypatch, make(keras))


def test_an_unknown_policy(keras, monkeypatch):
    from precscope.errors import PrecScopeError

    with pytest.raises(PrecScopeError, match="Keras knows no dtype policy 'mixed_float17'"):
        build_with(monkeypatch, None, "mixed_float17")


def test_a_model_that_sets_its_own_policy_is_noticed(keras, monkeypatch):
    _, facts = build_with(monkeypatch, lambda: (model_of(keras, policy="float32"), dataset_of(8)), "mixed_float16")
    keras.config.set_dtype_policy("float32")
    assert "No layer has the policy mixed_float16: the build function sets its own (float32)" in facts["notices"][0]
    _, facts = build_with(monkeypatch, lambda: (model_of(keras), dataset_of(8)), "mixed_float16")
    keras.config.set_dtype_policy("float32")
    assert facts["notices"] == []


def test_a_smaller_last_batch_is_left_out_and_the_dataset_repeated(keras):
    from precscope.probes.bench_worker import Training

    training = Training(model_of(keras), dataset_of(10))  # batches of 4, 4 and 2
    seen = []
    training.model.train_function = lambda iterator: seen.append(next(iterator)[0].shape[0]) or {"loss": 0.5}
    training.warm_up(2)
    training.round(5)
    assert seen == [4] * 7
    summary = training.summary()
    assert (summary["steps"], summary["steps_applied"], summary["loss"]) == (7, 0, 0.5)


def made(policy, *ms, **facts):
    """A result with rounds of so many milliseconds."""
    facts = {"memory_source": "allocator", "peak_memory_bytes": 100 * MIB, "batch": 32, "model": "tower"} | facts
    return PolicyResult(policy, round_step_ns=tuple(round(time * 1e6) for time in ms), first_step_s=2.0, **facts)


@pytest.fixture
def result():
    policies = [
        made("float32", 4.0, 4.1, 4.2, parameters=7, steps=63, steps_applied=63),
        made("mixed_float16", 2.0, 2.0, 2.1, peak_memory_bytes=50 * MIB, steps=63, steps_applied=60),
        made("mixed_bfloat16", 5.0, 5.2, 5.1, notices=("Look out.",)),
        made("float16", 4.0, 4.15, 4.1),
        PolicyResult("bfloat16", error="my:build raised \x1b[31mValueError"),
    ]
    hardware = {"gpus": [{"name": "NVIDIA H100"}], "cpu": "EPYC", "cpu_count": 2}
    return bench_result("my:build", (20, 3, 3), policies, {"keras": "3.15.1", "tensorflow": "2.21.0"}, hardware)


def test_ratios_to_float32(result):
    assert [policy.ratio_to_float32 for policy in result.policies] == [1.0, 2.0 / 4.1, 5.1 / 4.1, 1.0, None]
    assert [policy.memory_ratio_to_float32 for policy in result.policies] == [1.0, 0.5, 1.0, 1.0, None]
    assert result.policies[1].examples_per_s == 16_000
    alone = bench_result("my:build", (20, 3, 3), result.policies[1:2], {}, {})
    assert replace(alone.policies[0], ratio_to_float32=None) == replace(result.policies[1], ratio_to_float32=None)


def test_memory_of_different_kinds_has_no_ratio():
    policies = [made("float32", 1.0), made("mixed_float16", 1.0, memory_source="resident")]
    assert bench_result("m:b", (1, 1, 1), policies, {}, {}).policies[1].memory_ratio_to_float32 is None


def shown(result, width=80):
    file = io.StringIO()
    print_bench(result, Console(file=file, width=width, highlight=False, markup=False))
    return file.getvalue()


def test_the_table_says_plainly_what_is_slower(result):
    text = shown(result)
    joined = " ".join(text.split())
    assert "▲ mixed_bfloat16 is SLOWER than float32: a step takes 1.24 times as long." in joined
    assert "✔ mixed_float16 is 2.05 times as fast as float32." in joined
    assert "= float16 and float32 differ by less than their own times vary: no gain is shown." in joined
    assert "• mixed_float16 skipped 3 of 63 steps: its loss scale." in joined
    assert "• mixed_bfloat16: Look out." in joined
    assert "✖ bfloat16 failed: my:build raised \\x1b[31mValueError" in joined
    assert "NVIDIA H100 · Keras 3.15.1 · TensorFlow 2.21.0" in text
    assert re.search(r"mixed_float16 +2.00 ms +2.00 to 2.05 +0.49× +50 MiB +0.50×", text)
    assert re.search(r"bfloat16 +– +– +– +– +–", text)
    assert re.search(r"mixed_float16 .* 16,000 +50 MiB +0.50× +2.0 s", shown(result, 120))


@pytest.mark.parametrize("width", [72, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal_nor_than_120(result, width):
    lines = shown(result, width).splitlines()
    assert max(map(cell_len, lines)) <= min(width, 120)
    assert width < 80 or "…" not in "".join(lines)


def test_json(result):
    data = json.loads(bench_json(result))
    assert (data["format"], data["version"], data["entry"]) == ("precscope-bench", 1, "my:build")
    assert data["policies"][1]["round_step_ns"] == [2_000_000, 2_000_000, 2_100_000]
    assert data["policies"][4]["step_time_ms"] is None


@pytest.fixture
def canned(monkeypatch, result):
    """Let every bench end at once with `result`, and note its plan."""
    plans = []

    def run(plan, advance):
        plans.append(plan)
        return result

    monkeypatch.setattr("precscope.probes.bench.run_bench", run)
    return plans


def test_the_command_writes_what_it_prints(canned, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    arguments = ["bench", "my:build", "--policies", "float32, mixed_float16", "--steps", "7", "--repeats", "2"]
    assert main([*arguments, "--out", str(out), "--format", "json"]) == 0
    assert capsys.readouterr().out == (out / "bench.json").read_text()
    assert canned == [BenchPlan("my:build", ("float32", "mixed_float16"), 7, 2)]
    assert main([*arguments, "--out", str(out)]) == 2
    assert "exists. Name another directory, or replace it with --overwrite." in capsys.readouterr().err
    assert len(canned) == 1  # said before anything was measured
    assert main([*arguments, "--out", str(out), "--overwrite"]) == 0
    assert [path.name for path in out.iterdir()] == ["bench.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build"], "Expected MODULE:FUNCTION"),
        (["nowhere.py:build"], "There is no file 'nowhere.py'"),
        (["my:build", "--policies", "float32,float32"], "expected different names with commas between"),
        (["my:build", "--policies", "float32,"], "expected different names"),
        (["my:build", "--steps", "0"], "Invalid value for '--steps'"),
    ],
)
def test_a_wrong_call_ends_before_anything_starts(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr("precscope.probes.bench_process.subprocess.Popen", None)
    assert main(["bench", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_where_no_policy_could_be_measured(canned, monkeypatch, capsys):
    failed = BenchResult("my:build", 1, 1, 1, (PolicyResult("float32", "Boom."), PolicyResult("float16", "Boom.")))
    monkeypatch.setattr("precscope.probes.bench.run_bench", lambda plan, advance: failed)
    assert main(["bench", "my:build"]) == 2
    assert (
        "Under none of float32, mixed_float16, mixed_bfloat16 could a step be timed. Boom." in capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["mnist", "resnet18", "lstm"])
def test_demos_are_benched_in_all_policies(canned, name):
    ended = CliRunner().invoke(demo, [name, "--bench"], catch_exceptions=False)
    assert ended.exit_code == 0
    (plan,) = canned
    assert plan.entry == f"precscope.probes.demos.{name}:build_for_bench"
    assert plan.policies == ("float32", "mixed_float16", "mixed_bfloat16")
    assert plan.steps == {"mnist": 100, "resnet18": 5, "lstm": 20}[name]
