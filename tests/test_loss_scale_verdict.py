"""Why steps were skipped: on generated histories, at the edges of each cause, and on real trainings."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import precscope
from precscope.advice import Evidence, analyze
from precscope.advice.loss_scale_account import loss_scale_account
from precscope.advice.loss_scale_verdict import SampledStep, judge_skips, main_cause
from precscope.loss_scale_history import scale_history
from tests.models import data, mlp
from tests.test_loss_scale_history import simulate

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "loss_scale_verdicts.py"
RECORDED: dict[str, Any] = {"reference": False, "profile_steps": 0, "device_interval_s": 0.0, "every": 10}


@pytest.mark.parametrize("seed", [0, 1])
def test_two_hundred_generated_histories(seed):
    right, false_alarms, verdicts = runpy.run_path(str(BENCHMARK))["judge_generated"](200, seed)
    assert right >= 196, verdicts
    assert false_alarms == 0, verdicts


def judged(steps, *skips, polls=None, growth=2000, samples=()):
    skipped = np.zeros(steps, bool)
    skipped[list(skips)] = True
    looks, _ = simulate(skipped, {0, steps, *(range(0, steps, 10) if polls is None else polls)}, growth)
    return judge_skips(scale_history(looks, growth), samples)


def test_three_probes_are_healthy():
    stretches = judged(6500, 2003, 4010, 6020)
    assert [stretch.cause for stretch in stretches] == ["probe"] * 3
    assert [(s.earliest, s.is_exact, s.bits_too_many) for s in stretches] == [
        (2003, True, 1),
        (4010, True, 1),
        (6020, True, 1),
    ]
    assert main_cause(stretches) == "probe"


def test_the_first_descent_is_a_search_and_tells_how_far_off_the_scale_was():
    (stretch,) = judged(200, *range(9))
    assert (stretch.cause, stretch.before, stretch.after, stretch.bits_too_many) == ("search", 2.0**15, 64.0, 9)


@pytest.mark.parametrize(
    ("steps", "skips", "cause"),
    [
        (200, range(9), "search"),
        (9, range(9), "search"),  # still on its way
        (12, range(12), "any_scale"),  # nothing was learned
        (200, range(17), "collapse"),
        (300, [200], "spike"),
        (300, [200, 201], "spike"),
        (300, [200, 201, 202], "bad_batch"),
        (210, range(204, 210), "any_scale"),
        (400, range(200, 220), "collapse"),
    ],
)
def test_causes_that_the_counters_tell(steps, skips, cause):
    assert main_cause(judged(steps, *skips)) == cause


def sample(step, skipped=False, fault=None, room=None):
    return SampledStep(step, skipped, 2.0**15, fault, room)


@pytest.mark.parametrize(
    ("samples", "cause"),
    [
        ([sample(200, True, "data")], "bad_batch"),
        ([sample(200, True, "forward")], "forward_overflow"),
        ([sample(200, True, "weights")], "bad_weights"),
        ([sample(199, room=6.0), sample(201, room=7.0)], "bad_batch"),  # 2**15 was not too high
        ([sample(199, room=6.0), sample(201, room=3.0)], "spike"),
        ([sample(150, room=3.7), sample(199, room=6.0), sample(201, room=7.0)], "spike"),  # batches differ that much
        ([sample(199, room=6.0)], "spike"),
    ],
)
def test_what_samples_add(samples, cause):
    assert main_cause(judged(300, 200, samples=samples)) == cause


def train(run_dir: Path, *, x_bad: float | None = None, bad_rows: slice = slice(0), **optimizer: Any) -> Any:
    arguments = {"initial_scale": 2.0**10, "dynamic_growth_steps": 2000} | optimizer
    rate = arguments.pop("rate", 0.001)
    scaler = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(rate), **arguments)
    model = mlp("mixed_float16", optimizer=scaler)
    x, y = data(8 * 120)
    if x_bad is not None:
        x[bad_rows] = x_bad
    with precscope.profile(model, run_dir, **RECORDED):
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    run = precscope.open_run(run_dir)
    account = loss_scale_account(Evidence(run))
    assert account is not None
    return run, account


def test_a_real_growth_with_its_probes_is_healthy(tmp_path: Path) -> None:
    run, account = train(tmp_path / "run", initial_scale=2.0**15, dynamic_growth_steps=15)
    assert any(stretch.cause == "probe" for stretch in account.stretches)
    assert not any(stretch.is_fault for stretch in account.stretches)
    assert account.level == "good"
    assert "The loss scale is healthy" in account.sentence
    assert "raised too high" in account.sentence
    assert not [f for f in analyze(run) if f.id == "loss_scale_floor"]


def test_a_real_search_from_far_too_high(tmp_path: Path) -> None:
    _, account = train(tmp_path / "run", initial_scale=2.0**24)
    assert account.stretches[0].cause == "search"
    assert "while it sought its first level" in account.sentence
    assert account.level == "good"


def test_a_real_search_that_ends_at_1_is_not_called_healthy(tmp_path: Path) -> None:
    """The weight of the samples makes gradients that float16 holds unscaled, and no larger ones."""
    scaler = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.0), initial_scale=16.0)
    model = mlp("mixed_float16", optimizer=scaler)
    x, y = data(8 * 20)
    with precscope.profile(model, tmp_path / "run", **RECORDED):
        model.fit(x, y, sample_weight=np.full(len(x), 1.6e4), batch_size=8, shuffle=False, verbose=0)
    account = loss_scale_account(Evidence(precscope.open_run(tmp_path / "run")))
    assert account is not None
    assert {stretch.cause for stretch in account.stretches} == {"search"}
    assert "which scales nothing" in account.sentence
    assert account.level == "attention"


def test_a_real_bad_batch_is_the_datas_fault(tmp_path: Path) -> None:
    """The sampled steps lie beside it: their gradients, which differ by several bits, had all much room."""
    bad_rows = slice(8 * 75, 8 * 75 + 1)
    _, account = train(tmp_path / "run", initial_scale=2.0**6, x_bad=np.inf, bad_rows=bad_rows)
    assert [(s.earliest, s.latest, s.cause) for s in account.stretches] == [(75, 75, "bad_batch")]
    assert account.level == "attention"
    assert "bad data" in account.sentence


def test_a_real_collapse_names_the_layer(tmp_path: Path) -> None:
    run, account = train(tmp_path / "run", x_bad=7e4, bad_rows=slice(8 * 60, None))
    assert [stretch.cause for stretch in account.stretches] == ["forward_overflow"]
    assert account.level == "bad"
    assert account.culprit is not None
    assert (account.culprit.layer, account.culprit.is_forward) == ("hidden", True)
    assert "The output of 'hidden' overflowed first" in account.sentence
    assert "is falling" in account.sentence
    assert "loss_scale_floor" in {finding.id for finding in analyze(run)}


def test_a_fixed_scale_and_none(tmp_path: Path) -> None:
    x, y = data(8 * 4)
    for factor, words in ((64.0, "is fixed at 64"), (None, "is not scaled although layers compute in float16")):
        model = mlp("mixed_float16", optimizer=keras.optimizers.SGD(0.01, loss_scale_factor=factor))
        with precscope.profile(model, tmp_path / str(factor), **RECORDED):
            model.fit(x, y, batch_size=8, verbose=0)
        account = loss_scale_account(Evidence(precscope.open_run(tmp_path / str(factor))))
        assert account is not None
        assert words in account.sentence


def test_a_float32_run_says_nothing(tmp_path: Path) -> None:
    x, y = data(8 * 4)
    model = mlp("float32")
    with precscope.profile(model, tmp_path / "run", **RECORDED):
        model.fit(x, y, batch_size=8, verbose=0)
    assert loss_scale_account(Evidence(precscope.open_run(tmp_path / "run"))) is None
