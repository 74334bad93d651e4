"""The loss scale is followed between samples, without touching the training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import precscope
from precscope.loss_scale_history import scale_history
from precscope.probes.keeper import PrecScopeWarning
from precscope.probes.loss_scale_poll import PollSchedule
from precscope.probes.sampling_loop import NEVER
from tests.models import data, mlp

if TYPE_CHECKING:
    from pathlib import Path

NO_SAMPLES: dict[str, Any] = {"profile_steps": 0, "device_interval_s": 0.0, "every": 1, "start": 10**6}
MS = 1_000_000


def scaled(initial_scale: float = 2.0**15, growth_steps: int = 5, **arguments: Any) -> keras.Model:
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.001), initial_scale=initial_scale, dynamic_growth_steps=growth_steps
    )
    return mlp("mixed_float16", optimizer=optimizer, **arguments)


class EveryStep(keras.callbacks.Callback):
    """The truth: the scale after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.scales: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.scales.append(float(self.model.optimizer.dynamic_scale.numpy()))


def changes_of(run: precscope.Run) -> Any:
    return scale_history(run.loss_scales, run.record.model["loss_scale_growth_steps"]).changes


def check(changes: Any, scales: list[float]) -> None:
    """Compare changes with the scale after each step."""
    before = [2.0**15, *scales]
    moved = [step for step in range(len(scales)) if before[step] != before[step + 1]]
    assert moved
    for change, step in zip(changes, moved, strict=True):
        assert change.earliest <= step <= change.latest


def test_the_gaps_double_and_then_follow_the_time():
    schedule = PollSchedule()
    steps = []
    for step in range(400_000):
        if step == 0 or step >= schedule.next_step:
            schedule.looked(step, step * MS)
            steps.append(step)
    assert steps[:6] == [0, 1, 3, 7, 15, 31]
    gaps = np.diff(steps)
    assert 3_900 < gaps.max() <= 4_000  # a hundredth of 400,000 steps of one millisecond
    assert 500 in gaps
    assert len(steps) < 400


def test_gaps_shrink_where_steps_become_slow():
    schedule = PollSchedule()
    now = 0
    for _ in range(20):
        step = schedule.next_step
        now += MS * step
        schedule.looked(step, now)
    schedule.looked(schedule.next_step, now + 3600_000 * MS)
    slow = schedule.next_step
    schedule.looked(slow, now + 7200_000 * MS)
    assert schedule.next_step == slow + 1


@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_fit_is_followed_between_samples(tmp_path: Path, steps_per_execution: int) -> None:
    model = scaled(growth_steps=9, steps_per_execution=steps_per_execution)
    x, y = data(8 * 48)
    truth = EveryStep()
    with precscope.profile(model, tmp_path / "run", **NO_SAMPLES):
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[truth])
    run = precscope.open_run(tmp_path / "run")
    assert run.samples == ()
    assert len(run.loss_scales) >= 5
    assert (run.loss_scales[0].step, run.loss_scales[-1].step) == (0, 48)
    assert run.loss_scales[-1].loss_scale == truth.scales[-1]
    assert next(cost for cost in run.costs if cost.kind == "poll").count == len(run.loss_scales)
    changes = changes_of(run)
    assert len(changes) >= 4
    if steps_per_execution == 1:
        check(changes, truth.scales)
        assert any(change.is_exact for change in changes)


def test_polling_changes_no_bit_and_leaves_nothing_behind(tmp_path: Path) -> None:
    x, y = data(8 * 30)
    weights = []
    for profiled in (False, True):
        model = scaled()
        keras.utils.set_random_seed(5)
        if profiled:
            with precscope.profile(model, tmp_path / "run", **NO_SAMPLES):
                model.fit(x, y, batch_size=8, verbose=0)
        else:
            model.fit(x, y, batch_size=8, verbose=0)
        weights.append(model.get_weights())
    for first, second in zip(*weights, strict=True):
        np.testing.assert_array_equal(first, second)


def test_train_on_batch_and_custom_loops(tmp_path: Path) -> None:
    x, y = data(8)
    model = scaled()
    with precscope.profile(model, tmp_path / "batch", **NO_SAMPLES):
        scales = [float(model.train_on_batch(x, y) and model.optimizer.dynamic_scale) for _ in range(12)]
    check(changes_of(precscope.open_run(tmp_path / "batch")), scales)

    loss_of = keras.losses.SparseCategoricalCrossentropy()
    for instrumented in (True, False):
        model = scaled()
        optimizer = model.optimizer
        optimizer.build(model.trainable_variables)

        @tf.function
        def step(model=model, optimizer=optimizer):
            with tf.GradientTape() as tape:
                loss = optimizer.scale_loss(loss_of(y, model(x, training=True)))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            return loss

        run_dir = tmp_path / f"loop{instrumented}"
        with precscope.profile(model, run_dir, **NO_SAMPLES) as session:
            call = session.instrument(step) if instrumented else step
            scales = []
            for _ in range(12):
                call()
                session.step()
                scales.append(float(optimizer.dynamic_scale))
        run = precscope.open_run(run_dir)
        assert len(run.loss_scales) >= 4
        check(changes_of(run), scales)


@pytest.mark.parametrize(("factor", "scale"), [(128.0, 128.0), (None, None)])
def test_a_fixed_scale_and_none_are_written_down_twice_however_often_they_are_polled(
    tmp_path: Path, factor: float | None, scale: float | None
) -> None:
    model = mlp("mixed_float16", optimizer=keras.optimizers.SGD(0.01, loss_scale_factor=factor))
    x, y = data(8 * 20)
    with precscope.profile(model, tmp_path / "run", **NO_SAMPLES) as session:
        model.fit(x, y, batch_size=8, verbose=0)
        assert session._parts.loop.next_poll < NEVER  # for a loss or a weight that is not finite
    run = precscope.open_run(tmp_path / "run")
    assert [(look.step, look.loss_scale, look.steps_skipped) for look in run.loss_scales] == [
        (0, scale, 0),
        (20, scale, 0),
    ]


def test_the_alarm_comes_while_the_scale_falls(tmp_path: Path) -> None:
    model = scaled(initial_scale=64.0)
    x, y = data(8 * 60)
    x[:] = np.inf
    with (
        pytest.warns(PrecScopeWarning, match="the loss scale fell below 1 and has no lower limit"),
        precscope.profile(model, tmp_path / "run", **NO_SAMPLES),
    ):
        model.fit(x, y, batch_size=8, verbose=0)
    run = precscope.open_run(tmp_path / "run")
    (notice,) = [notice for notice in run.notices if notice.source == "loss scale"]
    assert notice.step is not None
    assert notice.step <= 15  # 64 takes seven halvings; the looks double their distance


def test_a_poll_that_fails_switches_itself_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from precscope.probes import loss_scale_poll

    def gone(optimizer: Any) -> int:
        raise OSError("gone")

    model = scaled(initial_scale=256.0, growth_steps=2000)  # nothing overflows
    x, y = data(8 * 20)
    with precscope.profile(model, tmp_path / "run", **NO_SAMPLES) as session:
        model.fit(x[:16], y[:16], batch_size=8, verbose=0)
        with monkeypatch.context() as patch:
            patch.setattr(loss_scale_poll, "growth_counter", gone)
            with pytest.warns(PrecScopeWarning, match="can no longer be followed: OSError"):
                model.fit(x, y, batch_size=8, verbose=0)
        assert session._parts.loop.next_poll == NEVER
    assert int(model.optimizer.iterations.numpy()) == 22
