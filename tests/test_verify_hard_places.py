"""Proof in hard places: too little memory, an interruption, a directory that cannot be written, another model."""

from __future__ import annotations

import errno
from pathlib import Path

import keras
import pytest
import tensorflow as tf

import precscope
from precscope.cli import main
from precscope.errors import PrecScopeError
from precscope.probes import replayer
from precscope.probes.verify import verify_model
from tests.test_verify import QUIET, everything, numbers, squares, trained

pytestmark = pytest.mark.usefixtures("few_timed_passes")


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("hard") / "run", squares())


def files(session):
    return sorted(file.name for file in Path(session.path).iterdir())


def memory_for(examples, monkeypatch):
    """Let replays of more than so many examples run out of memory."""
    whole = replayer.Replayer._run

    def run(self, step, batch, scale):
        if tf.nest.flatten(batch.args)[0].shape[0] > examples:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")
        return whole(self, step, batch, scale)

    monkeypatch.setattr(replayer.Replayer, "_run", run)


def test_batches_that_do_not_fit_are_sliced_and_that_is_said(session, monkeypatch):
    memory_for(5, monkeypatch)
    verification = verify_model(squares(), precscope.open_run(session.path))
    assert set(verification.pins) == {"square", "down"}
    assert verification.weights == "as kept with each batch, on the first 0.25 of their examples for want of memory"


def test_where_no_slice_fits_that_is_the_error_and_nothing_is_changed(session, monkeypatch):
    memory_for(0, monkeypatch)
    model = session._model
    before, names = everything(model), files(session)
    with pytest.raises(PrecScopeError, match=r"There is not enough memory to replay batches"):
        session.verify()
    assert everything(model) == before
    assert files(session) == names


@pytest.mark.parametrize("at", [1, 4, 9])
def test_an_interrupted_proof_leaves_nothing_behind(session, monkeypatch, at):
    passes = []
    whole = replayer.ShadowStep.run

    def interrupted(self, *args, **options):
        passes.append(1)
        result = whole(self, *args, **options)
        if len(passes) == at:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(replayer.ShadowStep, "run", interrupted)
    model = session._model
    before, names = everything(model), files(session)
    with pytest.raises(KeyboardInterrupt):
        session.verify()
    assert everything(model) == before
    assert files(session) == names


def test_a_directory_that_cannot_be_written_is_told_before_the_work(session, monkeypatch, capsys):
    def refused(self, *args, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refused)
    monkeypatch.setattr(replayer.Replayer, "set_reference", lambda *args: pytest.fail("the work was begun"))
    assert main(["verify", str(session.path), "--model", "tests.test_verify:squares"]) == 2
    assert "that cannot be written: Read-only file system. Verify a copy" in capsys.readouterr().err


def test_the_model_of_another_run_is_told_without_a_word_of_policies(session, tmp_path, monkeypatch, capsys):
    (tmp_path / "train.py").write_text(
        "import keras\nfrom tests.test_verify import squares\n\n"
        "def build():\n    return squares(keras.layers.Dense(4, name='extra'))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["verify", str(session.path), "--model", "train.py:build"]) == 2
    error = capsys.readouterr().err
    assert "The model is not the one that the run" in error
    assert "'squares' (Sequential): it has 'extra' beside." in error
    assert "policy" not in error


def test_a_second_proof_takes_the_place_of_the_first(session):
    first = session.verify()
    second = session.verify(most_batches=1)
    assert second.pins == first.pins
    assert precscope.open_run(session.path).verification == second
    assert sorted(file for file in files(session) if "part" in file) == []


class Counting(keras.Model):
    """Counts its steps and draws noise of its own: state that a replay writes, too."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.steps_made = self.add_weight(shape=(), initializer="zeros", trainable=False, dtype="float32")
        self.noise = keras.random.SeedGenerator(7)

    def train_step(self, data):
        x, y = data
        self.steps_made.assign_add(1.0)
        return super().train_step((x + 0.01 * keras.random.normal(keras.ops.shape(x), seed=self.noise), y))


def state_after(path, verified):
    """Train twice with a session around, verify in between or not, and return all that is left."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4,))
    x = keras.layers.Dropout(0.2)(keras.layers.BatchNormalization()(keras.layers.Dense(8, "relu")(inputs)))
    model = Counting(inputs, keras.layers.Dense(1)(x))
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
    model.compile(optimizer, "mse", metrics=["mae"])
    data = numbers(size=1.0)
    with precscope.profile(model, path, every=2, keep_batches_mib=4, **QUIET) as session:
        losses = model.fit(*data, batch_size=16, epochs=2, verbose=0).history
        if verified:
            session.verify(most_batches=2)
        losses |= {f"then {key}": value for key, value in model.fit(*data, batch_size=16, verbose=0).history.items()}
    variables = (*model.variables, *optimizer.variables, *model.metrics_variables)
    return losses, [variable.numpy().tolist() for variable in variables]


def test_training_goes_on_as_if_it_had_never_been_verified(tmp_path):
    assert state_after(tmp_path / "verified", True) == state_after(tmp_path / "plain", False)
