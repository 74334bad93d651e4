"""Real trainings that turn non-finite: sampling turns dense by itself, and names layer, pass, step and line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import precscope
from precscope.advice.origin_account import main_origin
from precscope.origin_records import DATA_ID
from tests.models import tape_step
from tests.origin_models import Op, Root, model_with, rows, scaled

if TYPE_CHECKING:
    from pathlib import Path

QUIET: dict[str, Any] = {"profile_steps": 0, "device_interval_s": 0.0, "reference": False}
pytestmark = pytest.mark.filterwarnings("ignore::precscope.probes.keeper.PrecScopeWarning")


def train(model: keras.Model, path: Path, data: Any, **options: Any) -> precscope.Run:
    with precscope.profile(model, path, **(QUIET | options)):
        model.fit(*data, batch_size=8, shuffle=False, verbose=0)
    return precscope.open_run(path)


def test_a_forward_overflow_between_samples_is_noticed_and_sampled_densely(tmp_path: Path) -> None:
    """Samples are due at steps 1 and 1001: the poll notices the skipped steps, and what follows is looked at."""
    layer = Op(lambda x: tf.exp(x), name="exp", dtype="mixed_float16")
    model = model_with(layer, "mixed_float16", scaled())
    data = rows(60, factor=dict.fromkeys(range(20, 60), 30.0))
    run = train(model, tmp_path / "run", data, every=1000, start=1, dense_steps=4)
    origin = main_origin(run.origins)
    assert origin is not None
    assert (origin.cause, origin.direction, origin.layer) == ("layer", "forward", "exp")
    assert origin.noticed_by == "skipped step"
    assert origin.finite_step is not None
    assert origin.finite_step < 20 <= origin.step
    assert (origin.epoch, origin.batch) == (0, origin.step)
    assert origin.place is not None
    assert origin.place.startswith("test_origin_watch.py:")
    assert "tf.exp(x)" in origin.place
    assert origin.data_finite is True
    assert origin.applied is False
    frames = [(frame.layer, frame.nonfinite > 0) for frame in origin.frames]
    assert frames == [(DATA_ID, False), ("hidden", False), ("exp", True)]
    assert origin.frames[-1].input_max is not None
    assert origin.frames[-1].input_max > 11.09  # the logarithm of float16's largest number
    dense = next(cost for cost in run.costs if cost.kind == "dense")
    assert dense.time_ns > 0
    steps = [sample.step for sample in run.samples]
    assert steps[1 : 1 + dense.count] == list(range(origin.step, origin.step + dense.count))


def test_in_a_custom_loop_the_users_line_is_found_too(tmp_path: Path) -> None:
    """Lines outside the train step, such as the loop's, are no layer's; those of PrecScope's own are nobody's."""
    layer = Op(lambda x: tf.exp(x), name="exp", dtype="mixed_float16")
    model = model_with(layer, "mixed_float16", scaled())
    x, y = rows(3, factor={2: 300.0})
    step = tf.function(tape_step(model, model.optimizer, keras.losses.MeanSquaredError()))
    with precscope.profile(model, tmp_path / "run", every=1, **QUIET) as session:
        instrumented = session.instrument(step)
        for begin in range(0, len(x), 8):
            instrumented(x[begin : begin + 8], y[begin : begin + 8])
    origin = main_origin(precscope.open_run(tmp_path / "run").origins)
    assert origin is not None
    assert (origin.layer, origin.step) == ("exp", 2)
    assert str(origin.place).startswith("test_origin_watch.py:")
    assert "tf.exp(x)" in str(origin.place)


def test_dense_sampling_is_bounded_and_can_be_switched_off(tmp_path: Path) -> None:
    layer = Op(lambda x: tf.exp(x), name="exp", dtype="mixed_float16")
    data = rows(60, factor=dict.fromkeys(range(3, 60), 30.0))
    rare: dict[str, Any] = {"every": 1000, "start": 1}
    off = train(
        model_with(layer, "mixed_float16", scaled()), tmp_path / "off", data, every=1000, start=1, dense_steps=0
    )
    assert [sample.step for sample in off.samples] == [1]
    layer = Op(lambda x: tf.exp(x), name="exp", dtype="mixed_float16")
    on = train(model_with(layer, "mixed_float16", scaled()), tmp_path / "on", data, dense_steps=3, **rare)
    assert 2 <= len(on.samples) <= 1 + 5 * 3
    outside = model_with(Op(tf.exp, name="exp", dtype="mixed_float16"), "mixed_float16", scaled())
    run = train(outside, tmp_path / "outside", data, every=1000, start=10**6)
    assert run.samples == ()


def test_a_gradient_that_only_the_backward_pass_makes_infinite(tmp_path: Path) -> None:
    model = model_with(Root(name="root", dtype="mixed_float16"), "mixed_float16", scaled())
    run = train(model, tmp_path / "run", rows(3), every=1)
    (origin,) = run.origins
    # Half of what `hidden` puts out is negative: the root of relu's zeros is finite, its gradient is not.
    assert (origin.cause, origin.direction, origin.layer) == ("layer", "backward", "root")
    assert origin.arrives_at == "hidden"
    assert (origin.step, origin.times, origin.last_step) == (1, 2, 2)
    assert origin.place is not None
    assert re.fullmatch(r"origin_models\.py:\d+-\d+", origin.place)


def test_a_softmax_head_in_float16(tmp_path: Path) -> None:
    keras.utils.set_random_seed(2)
    softmax = keras.layers.Dense(3, "softmax", name="head", dtype="mixed_float16")
    model = keras.Sequential([keras.Input((4,)), softmax])
    optimizer = scaled(initial_scale=2.0**15)
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    x, _ = rows(6)
    run = train(model, tmp_path / "run", (30 * x, np.arange(48) % 3), every=1)
    origin = main_origin(run.origins)
    assert origin is not None
    assert (origin.cause, origin.direction, origin.arrives_at) == ("loss", "backward", "head")
    assert origin.loss_scale is not None


def test_a_bad_batch_and_bad_labels_are_the_datas_fault(tmp_path: Path) -> None:
    def plain() -> Any:
        return Op(lambda x: x * 1.0, name="plain", dtype="mixed_float16")

    model = model_with(plain(), "mixed_float16", scaled())
    run = train(model, tmp_path / "x", rows(8, bad={5: np.nan}), every=1)
    (origin,) = run.origins
    assert (origin.cause, origin.layer, origin.step, origin.batch) == ("data", DATA_ID, 5, 5)
    assert origin.data_finite is False
    x, y = rows(8)
    y = y.copy()
    y[8 * 4] = np.inf
    run = train(model_with(plain(), "mixed_float16", scaled()), tmp_path / "y", (x, y), every=1)
    (origin,) = run.origins
    assert (origin.cause, origin.step) == ("data", 4)


def test_weights_that_were_bad_already(tmp_path: Path) -> None:
    model = model_with(Op(lambda x: x * 1.0, name="plain"), "float32")
    model.layers[0].kernel.assign(np.full((4, 8), np.nan, np.float32))
    run = train(model, tmp_path / "run", rows(4), every=1)
    (origin,) = run.origins
    assert (origin.cause, origin.direction, origin.layer) == ("weights", None, None)
    assert "hidden/kernel" in origin.bad_weights
    assert origin.times == 3


def test_an_update_that_spoils_the_weights_is_told_from_the_pass(tmp_path: Path) -> None:
    model = model_with(Op(lambda x: x * 1.0, name="plain"), "float32", keras.optimizers.SGD(1e-3))
    far = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: model.optimizer.learning_rate.assign(3e38 if batch == 3 else 1e-3)
    )
    x, y = rows(5)
    with precscope.profile(model, tmp_path / "run", every=1, **QUIET):
        model.fit(30 * x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[far])
    origin = main_origin(precscope.open_run(tmp_path / "run").origins)
    assert origin is not None
    assert (origin.cause, origin.direction, origin.step) == ("update", "update", 3)
    assert any(name.startswith("hidden/") for name in origin.bad_updates)


def test_code_between_layers_is_named_with_its_line(tmp_path: Path) -> None:
    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__(dtype="mixed_float16")
            self.hidden = keras.layers.Dense(8, dtype="mixed_float16")
            self.head = keras.layers.Dense(1, dtype="float32")

        def call(self, x: Any) -> Any:
            h = self.hidden(x)
            return self.head(tf.exp(h * 50.0))

    model = Net()
    model.compile(scaled(), "mse", jit_compile=False)
    run = train(model, tmp_path / "run", rows(4), every=1)
    origin = main_origin(run.origins)
    assert origin is not None
    assert (origin.cause, origin.direction, origin.layer) == ("layer", "forward", "(before head)")
    assert origin.place is not None
    assert origin.place.endswith("return self.head(tf.exp(h * 50.0))")
    assert run.layer("(before head)").inputs == ("hidden",)
    assert run.layer("head").inputs == ("(before head)",)


def test_a_loss_that_turns_bad_between_samples_is_noticed_without_a_loss_scale(tmp_path: Path) -> None:
    model = model_with(Op(lambda x: x * 1.0, name="plain"), "float32")
    run = train(model, tmp_path / "run", rows(40, bad={6: np.inf}), every=1000, start=1)
    (origin,) = run.origins
    assert (origin.cause, origin.noticed_by) == ("weights", "loss")
    assert origin.finite_step is not None
    assert origin.finite_step < 6 < origin.step
    assert len(run.samples) <= 3  # lost weights are looked at once


def test_a_healthy_training_has_no_origin(tmp_path: Path) -> None:
    model = model_with(Op(lambda x: x * 1.0, name="plain", dtype="mixed_float16"), "mixed_float16", scaled())
    run = train(model, tmp_path / "run", rows(6), every=1)
    assert run.origins == ()
