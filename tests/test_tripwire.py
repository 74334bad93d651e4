"""The tripwire: it changes no bit of the training, and keeps exactly the first bad step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import precscope
from precscope.advice.origin_account import main_origin
from precscope.kept_batches import kept_batches
from precscope.probes import tripwire
from precscope.probes.keeper import PrecScopeWarning
from precscope.probes.weight_guard import WeightGuard
from tests.models import data, mlp
from tests.origin_models import Op, build_reciprocal, model_with, rows, scaled

if TYPE_CHECKING:
    from pathlib import Path

RARE: dict[str, Any] = {
    "reference": False,
    "profile_steps": 0,
    "device_interval_s": 0.0,
    "every": 10**6,
    "start": 1,
    "dense_steps": 0,
}
BAD = 17


class Weights(keras.callbacks.Callback):
    """The weights before each step."""

    def __init__(self) -> None:
        super().__init__()
        self.before: list[list[np.ndarray]] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.before.append([value.copy() for value in self.model.get_weights()])


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_it_changes_no_bit(tmp_path: Path, steps_per_execution: int) -> None:
    x, y = data(8 * 16 + 3)  # the last batch of each epoch is smaller
    results = []
    for watched in (False, True):
        model = mlp("mixed_float16", steps_per_execution=steps_per_execution)
        keras.utils.set_random_seed(5)
        if watched:
            with precscope.profile(model, tmp_path / "run", tripwire=True, **RARE):
                history = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
        else:
            history = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
        results.append((history.history["loss"], model.get_weights(), int(model.optimizer.iterations.numpy())))
    assert results[0][0] == results[1][0]
    assert results[0][2] == results[1][2]
    for first, second in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_array_equal(first, second)
    costs = {cost.kind: cost for cost in precscope.open_run(tmp_path / "run").costs}
    assert costs["tripwire"].count == 34


def test_the_step_that_lost_the_weights_is_kept_and_explained(tmp_path: Path) -> None:
    """No loss scale skips the step, and no sample sees it."""
    model, weights = build_reciprocal(), Weights()
    x, y = rows(40)
    x[8 * BAD] = 0.0
    with precscope.profile(model, tmp_path / "run", tripwire=True, **RARE):
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[weights])
    run = precscope.open_run(tmp_path / "run")
    origin = main_origin(run.origins)
    assert origin is not None
    assert (origin.cause, origin.direction, origin.layer, origin.step) == ("layer", "forward", "reciprocal", BAD)
    assert (origin.noticed_by, origin.finite_step, origin.batch) == ("tripwire", BAD - 1, BAD)
    assert origin.place is not None
    assert "1.0 / tf.reduce_sum(tf.abs(x)" in origin.place
    (kept,) = kept_batches(run.path)
    assert (kept.step, str(kept.path.relative_to(run.path))) == (BAD, origin.kept)
    np.testing.assert_array_equal(kept.load("data")[0], x[8 * BAD : 8 * BAD + 8])
    for value, before in zip(kept.load("weights").values(), weights.before[BAD], strict=True):
        np.testing.assert_array_equal(value, before)


def test_it_is_armed_again_after_a_step_that_was_skipped(tmp_path: Path) -> None:
    model = model_with(Op(lambda x: x * 1.0, name="plain", dtype="mixed_float16"), "mixed_float16", scaled())
    x, y = rows(30, bad={4: np.nan})
    x[8 * 20 : 8 * 21] = 6e4  # its products leave float16
    with precscope.profile(model, tmp_path / "run", tripwire=True, **RARE) as session:
        for batch in range(30):
            model.train_on_batch(x[8 * batch : 8 * batch + 8], y[8 * batch : 8 * batch + 8])
            if batch == 10:
                assert session._parts.extras.tripwire is not None
                session._parts.extras.tripwire.look()
    run = precscope.open_run(tmp_path / "run")
    found = {(origin.cause, origin.layer, origin.step) for origin in run.origins}
    assert found == {("data", "(data)", 4), ("layer", "hidden", 20)}
    assert [kept.step for kept in kept_batches(run.path)] == [4, 20]
    assert {origin.loss_scale for origin in run.origins} == {64.0, 32.0}


@pytest.mark.parametrize("poll_at", [None, 7, 8])
def test_a_custom_loop(tmp_path: Path, poll_at: int | None) -> None:
    """Whenever the poll looks: its time depends on the clock."""
    model = model_with(Op(lambda x: x * 1.0, name="plain"), "float32")
    optimizer, loss_of = keras.optimizers.SGD(1e-3), keras.losses.MeanSquaredError()
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(y, tf.math.log(model(x, training=True)))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    model.layers[-1].bias.assign([50.0])
    x, y = rows(12)
    with precscope.profile(model, tmp_path / "run", optimizer=optimizer, tripwire=True, **RARE) as session:
        call = session.instrument(step)
        for batch in range(12):
            if batch == 7:
                model.layers[-1].bias.assign([-50.0])  # a logarithm of what is negative
            if poll_at is not None:
                session._parts.loop.next_poll = poll_at if batch <= poll_at else 10**6
            call(tf.constant(x[8 * batch : 8 * batch + 8]), tf.constant(y[8 * batch : 8 * batch + 8]))
            session.step()
    origin = main_origin(precscope.open_run(tmp_path / "run").origins)
    assert origin is not None
    assert (origin.cause, origin.direction, origin.step, origin.epoch) == ("loss", "forward", 7, None)
    assert origin.kept is not None


def test_many_batches_are_looked_at_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tripwire, "MOST_BATCH_BYTES", 3 * 8 * (4 + 1) * 4)
    model = model_with(Op(lambda x: x * 1.0, name="plain"), "float32")
    held = []
    x, y = rows(12)
    with precscope.profile(model, tmp_path / "run", tripwire=True, **RARE) as session:
        wire = session._parts.extras.tripwire
        assert wire is not None
        counting = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: held.append(len(wire._given)))
        model.fit(x, y, batch_size=8, verbose=0, callbacks=[counting])
    assert max(held) <= 3


def test_a_tripwire_that_fails_is_off_and_the_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, step: int, loss: Any, *, copies: bool) -> None:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(WeightGuard, "pass_by", broken)
    model = model_with(Op(lambda x: x * 1.0, name="plain"), "float32")
    with (
        pytest.warns(PrecScopeWarning, match="the tripwire failed and is off: RuntimeError: no memory left"),
        precscope.profile(model, tmp_path / "run", tripwire=True, **RARE),
    ):
        model.fit(*rows(5), batch_size=8, verbose=0)
    assert int(model.optimizer.iterations.numpy()) == 5


@pytest.mark.parametrize("when", ["traced", "run"])
@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_a_probed_step_that_fails_costs_no_batch_and_is_judged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps_per_execution: int, when: str
) -> None:
    """A step that is judged twice looks as if it had updated nothing: a false alarm."""

    def broken(recorder: Any) -> None:
        if when == "traced":
            raise RuntimeError("broken on purpose")
        tf.debugging.Assert(tf.random.uniform([]) < 0, ["broken on purpose"])  # with the step's update made

    x, y = data(8 * 12)
    results = []
    for watched in (False, True):
        model = mlp("mixed_float16", steps_per_execution=steps_per_execution)
        keras.utils.set_random_seed(5)
        if watched:
            monkeypatch.setattr("precscope.probes.recorder.Recorder.end", broken)
            with (
                pytest.warns(PrecScopeWarning, match="the probed step failed"),
                precscope.profile(model, tmp_path / "run", tripwire=True, **RARE),
            ):
                model.fit(x, y, batch_size=8, verbose=0, shuffle=False)
        else:
            model.fit(x, y, batch_size=8, verbose=0, shuffle=False)
        results.append((model.get_weights(), int(model.optimizer.iterations.numpy())))
    assert results[0][1] == results[1][1] == 12
    for first, second in zip(results[0][0], results[1][0], strict=True):
        np.testing.assert_array_equal(first, second)
    assert not precscope.open_run(tmp_path / "run").origins
