"""Sessions around real trainings: what is recorded, what is left as it was, what bad input gets."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, cast

import keras
import numpy as np
import pytest
import tensorflow as tf

import precscope
from precscope.probes import sampling_loop, session
from precscope.probes.keeper import PrecScopeWarning
from tests.models import data, mlp, tape_step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUIET: dict[str, Any] = {
    "profile_steps": 0,
    "device_interval_s": 0.0,
    "reference": False,
}  # time and memory have tests of their own


def traces_of(model: keras.Model) -> dict[str, Any]:
    """What a session could leave behind on a model."""
    layers = [model, *model._flatten_layers(include_self=False)]
    return {
        "shadowed": [(layer.name, name) for layer in layers for name in ("call", "train_step") if name in vars(layer)],
        "make_train_function": "make_train_function" in vars(model),
        "optimizer": [name for name in ("apply", "scale_loss") if name in vars(model.optimizer)],
        "chooses": type(model.train_function).__name__ == "ChoosingTrainFunction",
        "profiled": model in session._profiled_models,
        "policies": [layer.dtype_policy.name for layer in layers],
        "optimizer_id": id(model.optimizer),
    }


@pytest.fixture
def untouched() -> Iterator[list[keras.Model]]:
    """Models put into the list must be at the end as they were when they were put there."""
    models = Watched()
    yield models
    for model, before in models.before:
        assert traces_of(model) == before


class Watched(list):
    def __init__(self) -> None:
        self.before: list[tuple[keras.Model, dict[str, Any]]] = []

    def append(self, model: keras.Model) -> None:
        self.before.append((model, traces_of(model)))


def train(model: keras.Model, steps: int, run_dir: Path | None, **options: Any) -> list[np.ndarray]:
    x, y = data(8 * steps)
    keras.utils.set_random_seed(11)
    if run_dir is None:
        history = model.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    else:
        with precscope.profile(model, run_dir, **(QUIET | options)):
            history = model.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    return [np.array(history.history["loss"]), *model.get_weights()]


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_a_session_whose_samples_never_come_due_changes_no_bit(tmp_path: Path, untouched: Watched, policy: str) -> None:
    model = mlp(policy)
    untouched.append(model)
    without = train(mlp(policy), 50, None)
    profiled = train(model, 50, tmp_path / "run", every=1, start=1_000)
    for first, second in zip(without, profiled, strict=True):
        np.testing.assert_array_equal(first, second)
    assert precscope.open_run(tmp_path / "run").samples == ()


# A tap stands between operations that TensorFlow would fuse (MatMul, BiasAdd, Relu), and a value that fusion kept in
# float32 is rounded where it is recorded. So sampled steps agree to the last places of the compute dtype, not to the
# bit; 50 steps of Adam at 0.01 carry that on. The bounds are a few epsilon of each format.
BOUNDS = {"float32": 2.0**-17, "mixed_float16": 2.0**-8, "mixed_bfloat16": 2.0**-6}


@pytest.mark.parametrize("policy", BOUNDS)
def test_sampled_steps_agree_within_rounding(tmp_path: Path, untouched: Watched, policy: str) -> None:
    model = mlp(policy)
    untouched.append(model)
    without = train(mlp(policy), 50, None)
    # In float16 the scale is found too high once; the steps after that would be sampled densely.
    profiled = train(model, 50, tmp_path / "run", every=7, dense_steps=0)
    for first, second in zip(without, profiled, strict=True):
        np.testing.assert_allclose(first, second, rtol=0, atol=BOUNDS[policy])
    run = precscope.open_run(tmp_path / "run")
    assert [sample.step for sample in run.samples] == [1, 7, 14, 21, 28, 35, 42, 49]


def test_under_xla_sampled_steps_agree_within_rounding(tmp_path: Path) -> None:
    without = train(mlp("mixed_float16", jit_compile=True), 20, None)
    profiled = train(mlp("mixed_float16", jit_compile=True), 20, tmp_path / "run", every=5)
    for first, second in zip(without, profiled, strict=True):
        np.testing.assert_allclose(first, second, rtol=0, atol=BOUNDS["mixed_float16"])
    run = precscope.open_run(tmp_path / "run")
    assert {tensor.kind for tensor in run.tensors} == {"activation", "gradient", "weight", "weight_gradient"}


def test_what_a_sample_holds_is_what_the_layers_computed(tmp_path: Path) -> None:
    """Recompute the step with plain TensorFlow and NumPy, and compare every tensor that was recorded."""
    model = mlp("float32")
    model.layers[1].rate = 0.0  # Dropout out of the way
    x, y = data(16)
    model.train_on_batch(x, y)  # the optimizer's first step
    weights = [w.copy() for w in model.get_weights()]
    with precscope.profile(model, tmp_path / "run", every=1, **QUIET):
        model.train_on_batch(x, y)
        weights = [w.copy() for w in model.get_weights()]
        model.train_on_batch(x, y)
    run = precscope.open_run(tmp_path / "run")
    hidden, head = (tf.Variable(w) for w in (weights[0], weights[2]))
    with tf.GradientTape(persistent=True) as tape:
        first = tf.nn.relu(tf.constant(x) @ hidden + weights[1])
        tape.watch(first)
        second = tf.nn.softmax(first @ head + weights[3])
        tape.watch(second)
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, second))
    expected: dict[tuple[str, Any], Any] = {
        ("hidden", "activation"): first,
        ("head", "activation"): second,
        ("hidden", "gradient"): tape.gradient(loss, first),
        ("hidden", "weight"): weights[0],
        ("head", "weight_gradient"): tape.gradient(loss, head),
    }
    (sample,) = run.samples
    assert sample.loss == pytest.approx(float(loss), rel=1e-5)
    for (layer, kind), tensor in expected.items():
        record = next(t for t in run.find(layer=layer, kind=kind) if t.name in ("0", "kernel"))
        reference = precscope.statistics.describe(np.array(tensor))
        recorded = run.statistics(0, record.index)
        assert recorded.count == reference.count
        assert recorded.zeros == reference.zeros, (layer, kind)
        assert recorded.absmax == pytest.approx(reference.absmax, rel=1e-5), (layer, kind)
        assert recorded.rms == pytest.approx(reference.rms, rel=1e-4), (layer, kind)
    assert not run.find(layer="head", kind="gradient")
    assert "logits" in (run.layer("head").gradient_unseen or "")
    assert run.record.software["tensorflow"] == tf.__version__
    assert {n.level for n in run.notices} <= {"info"}


def test_loss_scale_and_skipped_steps_are_counted(tmp_path: Path, untouched: Watched) -> None:
    model = mlp("mixed_float16")
    model.optimizer.initial_scale = 2.0**30  # overflows until it has fallen far enough
    untouched.append(model)
    train(model, 40, tmp_path / "run", every=1)
    run = precscope.open_run(tmp_path / "run")
    last = run.loss_scales[-1]
    assert last.step == 40
    assert last.steps_applied == int(model.optimizer.iterations.numpy())
    assert last.steps_skipped == 40 - last.steps_applied > 0
    assert last.loss_scale == 2.0 ** (30 - last.steps_skipped)
    skipped = [s for s in run.samples if s.applied is False]
    assert skipped
    assert all(s.applied is not None for s in run.samples)
    gradients = [t.index for t in run.tensors if t.kind == "weight_gradient"]
    first_skipped = run.scalars[skipped[0].index][gradients]
    assert (first_skipped["positive_infinities"] + first_skipped["negative_infinities"] + first_skipped["nans"]).sum()
    assert run.scalars[skipped[0].index]["updates"].sum() == 0


def test_lost_updates_are_counted(tmp_path: Path) -> None:
    model = mlp("float32", optimizer=keras.optimizers.SGD(1e-12))  # below half an ulp of nearly every weight
    train(model, 3, tmp_path / "run", every=1)
    run = precscope.open_run(tmp_path / "run")
    kernel = next(t for t in run.find(layer="hidden", kind="weight") if t.name == "kernel")
    row = run.scalars[-1][kernel.index]
    assert 0 < row["updates"] <= row["count"]
    assert row["lost_updates"] == row["updates"]


@pytest.mark.parametrize("mode", ["eager", "steps_per_execution", "train_on_batch", "validation_and_epochs"])
def test_ways_to_train(tmp_path: Path, untouched: Watched, mode: str) -> None:
    compile_arguments: dict[str, dict[str, Any]] = {
        "eager": {"run_eagerly": True},
        "steps_per_execution": {"steps_per_execution": 3},
    }
    model = mlp("mixed_float16", **compile_arguments.get(mode, {}))
    untouched.append(model)
    x, y = data(100)  # 12 batches of 8 and one of 4
    with precscope.profile(model, tmp_path / "run", every=3, **QUIET):
        if mode == "train_on_batch":
            for start in range(0, 80, 8):
                model.train_on_batch(x[start : start + 8], y[start : start + 8])
        else:
            split = 0.2 if mode == "validation_and_epochs" else 0.0
            model.fit(x, y, batch_size=8, epochs=2, validation_split=split, verbose=0)
    run = precscope.open_run(tmp_path / "run")
    assert len(run.samples) >= 3
    assert not run.notices
    assert {t.layer for t in run.tensors if t.kind == "gradient"} == {"hidden", "drop", "head"}
    assert all(sample.loss is not None and sample.loss_scale for sample in run.samples)
    if mode in ("eager", "validation_and_epochs"):
        steps = 10 * 2 if mode == "validation_and_epochs" else 13 * 2
        assert run.loss_scales[-1].step == steps


def test_the_first_due_step_is_sampled_once_the_plain_one_has_run(tmp_path: Path) -> None:
    train(mlp(), 20, tmp_path / "run", start=5, every=6)
    assert [sample.step for sample in precscope.open_run(tmp_path / "run").samples] == [5, 11, 17]


def test_two_fits_and_a_new_compile_in_one_session(tmp_path: Path) -> None:
    model = mlp("mixed_float16")
    x, y = data(64)
    with precscope.profile(model, tmp_path / "run", every=2, **QUIET):
        model.fit(x, y, batch_size=8, verbose=0)
        model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
        model.fit(x, y, batch_size=8, verbose=0)
    run = precscope.open_run(tmp_path / "run")
    assert run.loss_scales[-1].step == 16
    assert max(sample.step for sample in run.samples) >= 14
    last = run.loss_scales[-1]
    assert (last.steps_applied or 0) + (last.steps_skipped or 0) == 16


@pytest.mark.parametrize("kind", ["tf.function", "tf.function, XLA", "plain"])
def test_custom_loops(tmp_path: Path, untouched: Watched, kind: str) -> None:
    model = mlp("mixed_float16")
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))
    untouched.append(model)
    train_step = tape_step(model, optimizer, keras.losses.SparseCategoricalCrossentropy())
    step = {"plain": train_step}.get(kind) or tf.function(train_step, jit_compile="XLA" in kind)
    x, y = data(64)
    with precscope.profile(model, tmp_path / "run", optimizer=optimizer, every=2, **QUIET) as profiled:
        instrumented = profiled.instrument(step)
        losses = []
        for start in range(0, 64, 8):
            losses.append(float(instrumented(x[start : start + 8], y[start : start + 8])))
            profiled.step()
    run = precscope.open_run(tmp_path / "run")
    assert not run.notices
    assert [sample.step for sample in run.samples] == [1, 2, 4, 6]
    assert [sample.loss for sample in run.samples] == pytest.approx([losses[s.step] for s in run.samples], rel=1e-6)
    assert {t.kind for t in run.tensors} == {"activation", "gradient", "weight", "weight_gradient"}
    assert run.loss_scales[-1].step == 8


def test_a_loss_given_to_step_stands_in_where_none_was_seen(tmp_path: Path) -> None:
    model = mlp()

    def train_step(x: np.ndarray, y: np.ndarray) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, model(x, training=True)))
        model.optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    x, y = data(8)
    with precscope.profile(model, tmp_path / "run", every=1, **QUIET) as profiled:
        step = profiled.instrument(train_step)
        for number in range(4):
            step(x, y)
            profiled.step(loss=tf.constant(10.0 + number))
    run = precscope.open_run(tmp_path / "run")
    assert [sample.loss for sample in run.samples] == [10.0 + sample.step for sample in run.samples]


def test_a_step_that_was_not_instrumented_is_told(tmp_path: Path) -> None:
    model = mlp()

    def loop() -> None:
        with precscope.profile(model, tmp_path / "run", every=2, **QUIET) as profiled:
            for _ in range(4):
                profiled.step()

    with pytest.warns(PrecScopeWarning, match=r"no layer's output could be recorded.*session\.instrument"):
        loop()
    assert "session.instrument" in precscope.open_run(tmp_path / "run").notices[0].message


def test_a_function_traced_before_is_told_and_stays_clean(tmp_path: Path) -> None:
    model = mlp()
    x, y = data(8)

    @tf.function
    def inner(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, model(x, training=True)))
        model.optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    inner(x, y)

    def loop() -> None:
        with precscope.profile(model, tmp_path / "run", every=1, **QUIET) as profiled:
            step = profiled.instrument(lambda x, y: inner(x, y))
            for _ in range(3):
                step(x, y)
                profiled.step()

    with pytest.warns(PrecScopeWarning, match="traced before"):
        loop()
    names = {op.name for op in inner.get_concrete_function(x, y).graph.get_operations()}
    assert not any("precscope" in name for name in names)


@pytest.mark.parametrize(
    ("part", "lost"),
    [
        ("recorder.Recorder.record", "batch at hand may"),
        ("recorder.Recorder.read", "this step recorded is lost"),
        ("probed_step.probed_step", "batch at hand may"),
        ("keeper.Keeper.keep_sample", "this step recorded is lost"),
    ],
)
def test_a_failing_probe_is_switched_off_and_the_training_goes_on(
    tmp_path: Path, untouched: Watched, monkeypatch: pytest.MonkeyPatch, part: str, lost: str
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the probe is broken on purpose")

    monkeypatch.setattr(f"precscope.probes.{part}", broken)
    model = mlp("mixed_float16")
    untouched.append(model)
    with pytest.warns(PrecScopeWarning, match="broken on purpose"):
        train(model, 12, tmp_path / "run", every=2)
    run = precscope.open_run(tmp_path / "run")
    assert run.status == "finished"
    assert run.samples == ()
    assert "switched off" in run.notices[0].message
    assert lost in run.notices[0].message
    assert int(model.optimizer.iterations.numpy()) + (run.loss_scales[-1].steps_skipped or 0) == 12


def test_a_full_disk_stops_the_recording_not_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise precscope.RunDirectoryError("The disk is full.")

    monkeypatch.setattr("precscope.writer.RunWriter.add_sample", full)
    model = mlp()
    with pytest.warns(PrecScopeWarning, match="Recording stopped: The disk is full"):
        train(model, 12, tmp_path / "run", every=2)
    assert int(model.optimizer.iterations.numpy()) == 12


class StopError(Exception):
    """What a callback raises."""


@pytest.mark.parametrize(("error", "status"), [(StopError("enough"), "failed"), (KeyboardInterrupt(), "interrupted")])
def test_an_exception_goes_on_and_what_was_recorded_is_kept(
    tmp_path: Path, untouched: Watched, error: BaseException, status: str
) -> None:
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 7:
                raise error

    model = mlp("mixed_float16")
    untouched.append(model)
    x, y = data(96)
    with pytest.raises(type(error)), precscope.profile(model, tmp_path / "run", every=2, dense_steps=0, **QUIET):
        model.fit(x, y, batch_size=8, verbose=0, callbacks=[Interrupt()])
    run = precscope.open_run(tmp_path / "run")
    assert (run.status, len(run.samples)) == (status, 4)
    assert type(error).__name__ in (run.record.error or "")
    model.fit(x, y, batch_size=8, verbose=0)  # goes on without PrecScope


def test_an_error_in_the_users_data_is_the_users(tmp_path: Path) -> None:
    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for _ in range(3):
            yield data(8)
        raise ValueError("the file is damaged")

    model = mlp()
    spec = (tf.TensorSpec([None, 6], tf.float32), tf.TensorSpec([None], tf.int32))
    dataset = tf.data.Dataset.from_generator(batches, output_signature=spec)
    with (
        pytest.raises(tf.errors.InvalidArgumentError, match="the file is damaged"),
        precscope.profile(model, tmp_path / "run", every=1, **QUIET),
    ):
        model.fit(dataset, verbose=0)
    assert precscope.open_run(tmp_path / "run").status == "failed"


class Clock:
    """A clock that is set by hand, in nanoseconds."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class NoRecorder:
    """Stands in for a recorder that nothing writes to."""

    traces = 0

    def prepare(self) -> None: ...
    def cancel(self) -> None: ...
    def read(self) -> None: ...


def test_the_budget_spaces_the_samples() -> None:
    """Plain steps take 1 ms, a sampled one 3 ms more."""
    from precscope.options import Options
    from precscope.sampling import Sampler

    sampled: list[Any] = []
    clock, recorder = Clock(), cast("Any", NoRecorder())
    loop = sampling_loop.SamplingLoop(
        Sampler(Options(overhead_budget=0.02)), lambda: None, sampled.append, lambda error, was_done: None, clock
    )

    def step(milliseconds: int) -> None:
        clock.now += milliseconds * 1_000_000

    loop.open_window()
    for _ in range(5_000):
        if loop.steps_seen < loop.next_step:
            step(1)
            loop.steps_seen += 1
        else:
            loop.run(lambda: (recorder, lambda: step(4)), lambda: step(1))
    costs = {cost.kind: cost for cost in loop.costs.records()}
    first_ns = 4_000_000  # there is no plain step yet to compare the first sample with
    assert costs["step"].time_ns - first_ns <= 0.02 * 5_000 * 1_000_000
    assert 25 <= len(sampled) <= 34  # 5,000 ms * 2 % / 3 ms = 33


def test_what_a_device_idles_after_a_sample_is_part_of_its_cost() -> None:
    """The host launches a probed step in 15 ms, on which the device works for 60; on a CPU the launch is the step."""
    from precscope.options import Options
    from precscope.sampling import Sampler

    clock, recorder = Clock(), cast("Any", NoRecorder())
    done_at = 0

    def wait() -> None:
        clock.now = max(clock.now, done_at)

    def probed() -> None:
        nonlocal done_at
        clock.now += 15_000_000
        done_at = clock.now + 45_000_000

    sampler = Sampler(Options(every=5))
    loop = sampling_loop.SamplingLoop(sampler, wait, lambda sampled: None, lambda error, was_done: None, clock)
    for _ in range(3):
        loop.run(lambda: (recorder, probed), lambda: None)
    idle = {cost.kind: cost for cost in loop.costs.records()}["idle"]
    assert (idle.count, idle.time_ns) == (3, 3 * 15_000_000)
    loop.run(lambda: (recorder, lambda: setattr(clock, "now", clock.now + 60_000_000)), lambda: None)
    assert {cost.kind: cost for cost in loop.costs.records()}["idle"].time_ns == 3 * 15_000_000


def test_bad_input_gets_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    with pytest.raises(precscope.SessionError, match=r"not compiled.*model\.compile.*optimizer=optimizer"):
        precscope.profile(model, tmp_path / "a")
    with pytest.raises(precscope.SessionError, match=r"expects a keras\.Model, received int"):
        precscope.profile(3, tmp_path / "a")
    model = mlp()
    with pytest.raises(precscope.OptionsError, match=r"Unknown option 'evry'.*every"):
        precscope.profile(model, tmp_path / "a", evry=3)
    with pytest.raises(precscope.RunDirectoryError, match="local"), precscope.profile(model, "gs://bucket/run"):
        pass
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with (
        pytest.raises(precscope.RunDirectoryError, match=r"thesis|not empty|exists"),
        precscope.profile(model, tmp_path / "full"),
    ):
        pass
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(precscope.SessionError, match=r"TensorFlow backend.*'jax'.*KERAS_BACKEND"):
        precscope.profile(model, tmp_path / "a")


def test_sessions_cannot_be_nested_or_used_twice(tmp_path: Path, untouched: Watched) -> None:
    model = mlp()
    untouched.append(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrecScopeWarning)  # nothing is trained here
        inner = precscope.profile(model, tmp_path / "inner", **QUIET)
        with precscope.profile(model, tmp_path / "outer", **QUIET) as outer:
            with pytest.raises(precscope.SessionError, match=r"another session.*cannot be nested"):
                inner.__enter__()
            assert not (tmp_path / "inner").exists()
        with pytest.raises(precscope.SessionError, match="is closed"):
            outer.step()
        with pytest.raises(precscope.SessionError, match="is used once"), outer:
            pass


def test_old_calls_inside_a_session_are_explained(tmp_path: Path) -> None:
    model = mlp("mixed_float16")

    def loop() -> None:
        with precscope.profile(model, tmp_path / "run", **QUIET):
            model.optimizer.get_scaled_loss(1.0)

    with pytest.raises(AttributeError) as caught:
        loop()
    assert any("scale_loss" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    ("steps", "options", "told"),
    [
        (0, {}, "no train step was seen. Expected a fit"),
        (1, {}, "1 train step was seen, and the first one is never sampled"),
        (3, {"start": 100}, "3 train steps were seen, and the option start=100 lets no step before that one be"),
    ],
)
def test_a_run_without_a_sample_says_why(tmp_path: Path, steps: int, options: dict[str, Any], told: str) -> None:
    model = mlp("float32")
    session = precscope.profile(model, tmp_path / "run", profile_steps=0, device_interval_s=0.0, **options)
    session.__enter__()
    if steps:
        model.fit(*data(8 * steps), batch_size=8, verbose=0)
    with pytest.warns(PrecScopeWarning, match=f"nothing was recorded: {told}"):
        session.__exit__(None, None, None)
