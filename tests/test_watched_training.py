"""Which trainings get a run of their own under `precscope run`, and what becomes of Keras and the models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import precscope
from precscope.options import Options
from precscope.probes.session import is_profiled
from precscope.probes.train_function import ChoosingTrainFunction
from precscope.probes.watched_training import TrainingWatch
from precscope.reader import open_run
from tests.models import data, mlp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPTIONS = Options(every=4, profile_steps=0, device_interval_s=0)
X, Y = data(64)


def model(name: str = "net", **arguments: Any) -> Any:
    made = mlp(run_eagerly=True, **arguments)
    made.name = name
    return made


def fit(one: Any, **arguments: Any) -> Any:
    return one.fit(X, Y, batch_size=8, verbose=0, shuffle=False, **arguments)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[TrainingWatch]:
    before = methods()
    watch = TrainingWatch(tmp_path, OPTIONS)
    watch.install(keras)
    yield watch
    watch.close(None)
    assert methods() == before


def methods() -> list[dict[str, Any]]:
    """Return what Keras' classes hold, without what Python adds when somebody asks for it."""
    classes = (keras.Model, keras.optimizers.Optimizer)
    return [{name: value for name, value in vars(one).items() if name != "__annotations__"} for one in classes]


def runs(folder: Path) -> dict[str, tuple[str, int]]:
    """Return status and number of samples of each run."""
    opened = {path.name: open_run(path) for path in sorted(folder.iterdir())}
    return {name: (run.record.status, len(run.samples)) for name, run in opened.items()}


def test_fits_of_one_model_make_one_run_until_it_is_compiled_anew(watch: TrainingWatch, tmp_path: Path) -> None:
    net = model()
    for _ in range(3):
        fit(net)
    assert list(runs(tmp_path)) == ["net-1"]
    net.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    fit(net)
    watch.close(None)
    assert runs(tmp_path) == {"net-1": ("finished", 6), "net-2": ("finished", 2)}
    assert open_run(tmp_path / "net-2").record.options["every"] == 4
    assert not is_profiled(net)
    assert not isinstance(net.train_function, ChoosingTrainFunction)
    assert "make_train_function" not in vars(net)


def test_it_says_where_the_runs_are(
    watch: TrainingWatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path.parent)
    fit(model("first"))
    fit(model("second"))
    watch.close(None)
    assert capsys.readouterr() == ("", "")
    watch.tell(watch.account())
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        "precscope: 2 runs were recorded. Read them:\n"
        f"  precscope report {tmp_path.name}/first-1\n"
        "    model 'first', 8 steps: No recorded layer computes in 16 bits, and all values were finite.\n"
        f"  precscope report {tmp_path.name}/second-1\n"
        "    model 'second', 8 steps: No recorded layer computes in 16 bits, and all values were finite.\n"
    )


def test_a_model_is_let_go_when_the_next_one_trains(watch: TrainingWatch) -> None:
    first, second = model("first"), model("second")
    fit(first)
    assert is_profiled(first)
    fit(second)
    assert not is_profiled(first)
    fit(first)  # they take turns
    fit(second)
    fit(first)
    fit(second)
    assert is_profiled(first)
    assert is_profiled(second)
    assert len(watch._runs) == 4


def test_train_on_batch_makes_one_run_and_models_that_take_turns_have_one_each(
    watch: TrainingWatch, tmp_path: Path
) -> None:
    first, second = model("first"), model("second")
    for _ in range(9):
        first.train_on_batch(X[:8], Y[:8])
        second.train_on_batch(X[:8], Y[:8])
    watch.close(RuntimeError("late"))
    assert runs(tmp_path) == {"first-1": ("failed", 3), "second-1": ("failed", 3)}


def test_results_are_those_without_us(watch: TrainingWatch) -> None:
    ours = model()
    history = fit(ours, epochs=2)
    watch.close(None)
    plain = model()
    assert history.history == fit(plain, epochs=2).history
    for a, b in zip(ours.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)  # a tap may change the last bits of a sampled step


def test_a_fit_that_fails_raises_its_own_error_and_the_next_is_another_run(
    watch: TrainingWatch, tmp_path: Path
) -> None:
    def fail(batch: int, logs: Any) -> None:
        raise ValueError("mine")

    net = model()
    with pytest.raises(ValueError, match="mine"):
        fit(net, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=fail)])
    fit(net)
    watch.close(None)
    assert {name: status for name, (status, _) in runs(tmp_path).items()} == {"net-1": "failed", "net-2": "finished"}


def test_a_model_that_is_not_compiled_fails_as_without_us(
    watch: TrainingWatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)], name="raw")
    for _ in range(2):
        with pytest.raises(ValueError, match="must call `compile\\(\\)`"):
            fit(net)
    told = capsys.readouterr().err
    assert told.count("precscope:") == 1
    assert "model 'raw' trains without us: SessionError: Model 'raw' is not compiled." in told


def test_a_session_of_the_program_wins(
    watch: TrainingWatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = model()
    net.train_on_batch(X[:8], Y[:8])
    with precscope.profile(net, tmp_path / "own", options=OPTIONS):
        fit(net)
        fit(net)
    fit(net)
    watch.close(None)
    assert runs(tmp_path) == {"net-1": ("finished", 0), "net-2": ("finished", 2), "own": ("finished", 4)}
    assert capsys.readouterr().err.count("is profiled by the program itself") == 1


def test_a_callback_of_ours_wins(watch: TrainingWatch, tmp_path: Path) -> None:
    net = model()
    fit(net)
    fit(net, callbacks=[precscope.Callback(tmp_path / "own", options=OPTIONS)])
    net.fit(X, Y, 8, 1, 0, precscope.Callback(tmp_path / "more", options=OPTIONS))
    watch.close(None)
    assert runs(tmp_path) == {"more": ("finished", 2), "net-1": ("finished", 2), "own": ("finished", 2)}


def test_a_fit_of_its_own_is_seen_where_it_calls_keras(watch: TrainingWatch, tmp_path: Path) -> None:
    class Own(keras.Sequential):
        def fit(self, *args: Any, **kwargs: Any) -> Any:
            return super().fit(*args, **kwargs)

    net = Own([keras.Input((6,)), keras.layers.Dense(2)], name="own")
    net.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    fit(net)
    watch.close(None)
    assert runs(tmp_path) == {"own-1": ("finished", 2)}


def test_a_training_inside_a_training(watch: TrainingWatch, tmp_path: Path) -> None:
    outer, inner = model("outer"), model("inner")
    train = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: (fit(inner), outer.train_on_batch(X[:8], Y[:8]))
    )
    fit(outer, callbacks=[train])
    watch.close(None)
    assert {name: status for name, (status, _) in runs(tmp_path).items()} == {
        "inner-1": "finished",
        "outer-1": "finished",
    }


def test_a_fork_trains_without_us(watch: TrainingWatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_process", -1)
    fit(model())
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_be_written_stops_no_training(
    watch: TrainingWatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr(watch, "_base", tmp_path / "file")
    assert fit(model()).history["loss"]
    assert "model 'net' trains without us" in capsys.readouterr().err


def test_another_backend_is_told_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Other:
        class backend:  # noqa: N801
            @staticmethod
            def backend() -> str:
                return "jax"

    TrainingWatch(tmp_path, OPTIONS).install(Other)
    assert "Keras runs on 'jax' here, so nothing is recorded" in capsys.readouterr().err


# Loops of the program's own


def update(net: Any) -> None:
    """Make a step as a custom loop does."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(net(X[:8], training=True) ** 2)
    net.optimizer.apply(tape.gradient(loss, net.trainable_variables), net.trainable_variables)


@pytest.mark.parametrize("step", [update, tf.function(update)])
def test_a_loop_of_the_programs_own_is_told_at_the_end(
    step: Any, watch: TrainingWatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net = model()
    fit(net)
    assert "apply" in vars(keras.optimizers.Optimizer)
    step(net)
    assert "apply" not in vars(keras.optimizers.Optimizer)  # nothing looks any more
    step(net)
    watch.close(None)
    watch.tell(watch.account())
    told = capsys.readouterr().err
    assert told.startswith("precscope: 1 run was recorded. Read it:\n")
    line = update.__code__.co_firstlineno + 4
    assert (
        f"\nprecscope: the program's own training loop, at test_watched_training.py:{line}, was not recorded." in told
    )
    assert "session.instrument(train_step)" in told


def test_a_program_that_only_has_a_loop_of_its_own_is_not_told_that_nothing_trained(
    watch: TrainingWatch, capsys: pytest.CaptureFixture[str]
) -> None:
    update(model())
    watch.tell(watch.account())
    told = capsys.readouterr().err
    assert told.startswith("precscope: the program's own training loop, at test_watched_training.py:")
    assert told.count("precscope:") == 1


def test_a_loop_that_the_program_profiles_itself_is_not_told(
    watch: TrainingWatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = model()
    with precscope.profile(net, tmp_path / "own", options=OPTIONS) as session:
        step = session.instrument(update)
        for _ in range(3):
            step(net)
    watch.tell(watch.account())
    assert "loop" not in capsys.readouterr().err


# The callback by itself


def test_the_callback_makes_a_run_for_each_fit(tmp_path: Path) -> None:
    net = model()
    callback = precscope.Callback(tmp_path / "x", options=OPTIONS, every=2)
    fit(net, callbacks=[callback])
    assert not is_profiled(net)
    assert not isinstance(net.train_function, ChoosingTrainFunction)
    fit(net, callbacks=[callback])
    assert runs(tmp_path) == {"x": ("finished", 4), "x-2": ("finished", 4)}


def test_a_name_that_is_taken_stops_no_training_but_the_first(tmp_path: Path) -> None:
    """In cross-validation each fold has a callback of its own, and an earlier program may have left runs."""
    (tmp_path / "x-2").mkdir()
    (tmp_path / "x-2" / "mine.txt").write_text("", encoding="utf-8")
    for _ in range(2):
        callback = precscope.Callback(tmp_path / "x", options=OPTIONS)
        for _ in range(2):
            fit(model(), callbacks=[callback])
    (tmp_path / "x-2" / "mine.txt").unlink()
    (tmp_path / "x-2").rmdir()
    assert runs(tmp_path) == dict.fromkeys(("x", "x-3", "x-4", "x-5"), ("finished", 2))


def test_the_callback_closes_when_its_training_failed(tmp_path: Path) -> None:
    def fail(epoch: int, logs: Any) -> None:
        raise ValueError("mine")

    net = model()
    callback = precscope.Callback(tmp_path / "x", options=OPTIONS)
    with pytest.raises(ValueError, match="mine"):
        fit(net, callbacks=[callback, keras.callbacks.LambdaCallback(on_epoch_end=fail)])
    with precscope.profile(net, tmp_path / "y", options=OPTIONS):
        pass
    fit(net, callbacks=[callback])
    found = {name: status for name, (status, _) in runs(tmp_path).items()}
    assert found == {"x": "interrupted", "x-2": "finished", "y": "finished"}


def test_the_callback_refuses_what_profile_refuses(tmp_path: Path) -> None:
    with pytest.raises(precscope.OptionsError, match="Unknown option 'evry'"):
        precscope.Callback(tmp_path / "x", evry=3)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("", encoding="utf-8")
    with pytest.raises(precscope.RunDirectoryError, match="not empty"):
        fit(model(), callbacks=[precscope.Callback(tmp_path / "x")])
