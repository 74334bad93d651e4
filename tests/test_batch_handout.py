"""Batches handed out of probed steps and kept: the right ones, from every kind of training."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import precscope
from precscope.kept_batches import kept_batches
from precscope.probes.batch_handout import BatchHandout, BatchKeeping
from precscope.probes.keeper import PrecScopeWarning
from tests.models import data, mlp

if TYPE_CHECKING:
    from pathlib import Path

QUIET: dict[str, Any] = {"profile_steps": 0, "device_interval_s": 0.0, "reference": False}


@pytest.mark.parametrize(("jit", "steps_per_execution"), [(False, 1), (True, 1), (False, 3)])
def test_fit_hands_out_the_batch_of_the_sampled_step(tmp_path: Path, jit: bool, steps_per_execution: int):
    model = mlp(jit_compile=jit, steps_per_execution=steps_per_execution)
    x, y = data(8 * 9 + (2 if steps_per_execution == 1 else 0))  # the last batch is smaller
    with precscope.profile(model, tmp_path / "run", every=1, keep_batches_mib=1, **QUIET):
        model.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    run = precscope.open_run(tmp_path / "run")
    assert [batch.step for batch in run.kept_batches] == [sample.step for sample in run.samples]
    assert len(run.kept_batches) >= 2
    for batch in run.kept_batches:
        kept_x, kept_y = batch.load()
        rows = slice(8 * batch.step, 8 * batch.step + 8)
        np.testing.assert_array_equal(kept_x, x[rows])
        np.testing.assert_array_equal(kept_y, y[rows])
        assert kept_y.dtype == y.dtype


def test_train_on_batch_with_weights_and_batches_of_other_sizes(tmp_path: Path):
    model = mlp(jit_compile=True)
    x, y = data(64)
    sizes = [8, 8, 6, 8]
    with precscope.profile(model, tmp_path / "run", every=1, keep_batches_mib=1, **QUIET):
        for size in sizes:
            model.train_on_batch(x[:size], y[:size], sample_weight=np.arange(size, dtype=np.float32))
    kept = precscope.open_run(tmp_path / "run").kept_batches
    assert [batch.step for batch in kept] == [1, 2, 3]
    for batch in kept:
        kept_x, _, weight = batch.load()
        assert kept_x.shape == (sizes[batch.step], 6)
        assert weight.tolist() == list(range(sizes[batch.step]))


def test_a_custom_loop_hands_out_its_arguments(tmp_path: Path):
    model = mlp()
    optimizer, loss_of = model.optimizer, keras.losses.SparseCategoricalCrossentropy()

    @tf.function
    def train_step(batch: Any, *, factor: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = factor * loss_of(batch["y"], model(batch["x"], training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    x, y = data(32)
    with precscope.profile(
        model, tmp_path / "run", optimizer=optimizer, every=1, keep_batches_mib=1, **QUIET
    ) as session:
        step = session.instrument(train_step)
        for i in range(3):
            rows = slice(8 * i, 8 * i + 8)
            step({"x": tf.constant(x[rows]), "y": tf.constant(y[rows])}, factor=tf.constant(0.5))
    kept = precscope.open_run(tmp_path / "run").kept_batches
    assert [batch.step for batch in kept] == [1, 2]
    assert kept[0].groups() == ("data", "keywords", "weights", "state")
    (batch,) = kept[0].load()
    np.testing.assert_array_equal(batch["x"], x[8:16])
    assert kept[0].load("keywords")["factor"] == 0.5


def test_what_cannot_be_handed_out_is_told_once_and_training_goes_on(tmp_path: Path):
    model = keras.Sequential([keras.Input((), dtype="string"), keras.layers.Hashing(4), keras.layers.Embedding(4, 2)])
    model.compile("sgd", "mse", jit_compile=False)
    words, y = tf.constant([["a"], ["b"]] * 8), np.zeros((16, 2), np.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PrecScopeWarning)
        with precscope.profile(model, tmp_path / "run", every=1, keep_batches_mib=1, **QUIET):
            model.fit(tf.reshape(words, [-1]), y, batch_size=4, verbose=0)
    told = [str(item.message) for item in caught if "not kept" in str(item.message)]
    assert len(told) == 1
    assert "batches hold string, and only dense tensors" in told[0]
    run = precscope.open_run(tmp_path / "run")
    assert run.kept_batches == ()
    assert len(run.samples) >= 2


def test_nothing_is_kept_unless_asked_for(tmp_path: Path):
    model = mlp()
    with precscope.profile(model, tmp_path / "run", every=1, **QUIET):
        model.fit(*data(32), batch_size=8, verbose=0)
    assert not (tmp_path / "run" / "kept").exists()


def test_weights_are_kept_beside_a_batch_only_where_three_such_fit(tmp_path: Path) -> None:
    told: list[str] = []
    handout = BatchHandout()
    handout.put(print, (np.ones(4, np.float32),), {})
    weights = {"dense/kernel": tf.ones([2**16])}  # a quarter of a MiB
    for limit_mib, folder in ((1.0, "roomy"), (0.5, "tight")):
        keeping = BatchKeeping(tmp_path / folder, limit_mib, told.append)
        (tmp_path / folder).mkdir()
        keeping.keep(3, handout, lambda: weights)
        keeping.keep(5, handout, lambda: weights)
    roomy, tight = (kept_batches(tmp_path / folder) for folder in ("roomy", "tight"))
    assert [batch.groups() for batch in roomy] == [("data", "weights", "state")] * 2
    np.testing.assert_array_equal(roomy[0].load("weights")["dense/kernel"], np.ones(2**16, np.float32))
    assert [batch.groups() for batch in tight] == [("data", "state")] * 2
    assert len(told) == 1
    assert "0.25 MiB a batch: raise keep_batches_mib to 0.75" in told[0]


def test_weights_that_were_lost_are_not_kept_but_the_last_good_ones(tmp_path: Path) -> None:
    """Statistics may be lost, in a skipped step say: a training goes on with them, and so does a replay."""
    handout = BatchHandout()
    handout.put(print, (np.ones(4, np.float32),), {})
    keeping = BatchKeeping(tmp_path, 1.0, print)

    def weights(kernel: float, variance: float = 1.0) -> dict[str, Any]:
        return {"dense/kernel": tf.fill([4], kernel), "norm/variance": tf.constant(variance)}

    keeping.begin(weights(1.0), {"dense/kernel"})
    for step, values in enumerate([weights(np.nan), weights(2.0, np.inf), weights(np.inf), weights(3.0)]):
        keeping.keep(step, handout, partial(dict, values), {"dense/kernel"})
    kept = kept_batches(tmp_path)
    assert [batch.load("weights")["dense/kernel"][0] for batch in kept] == [1.0, 2.0, 2.0, 3.0]
    assert [batch.load("state")["weights_from_before"] for batch in kept] == [True, False, True, False]
    assert kept[1].load("weights")["norm/variance"] == np.inf


def test_where_no_weights_were_good_they_are_kept_as_they_are(tmp_path: Path) -> None:
    handout = BatchHandout()
    handout.put(print, (np.ones(4, np.float32),), {})
    keeping = BatchKeeping(tmp_path, 1.0, print)
    lost = {"dense/kernel": tf.fill([4], np.float32(np.nan))}
    keeping.begin(lost)
    keeping.keep(0, handout, lambda: lost)
    (batch,) = kept_batches(tmp_path)
    assert np.isnan(batch.load("weights")["dense/kernel"]).all()
    assert not batch.load("state")["weights_from_before"]


def test_no_more_than_may_be_kept_is_held_of_the_start(tmp_path: Path) -> None:
    handout = BatchHandout()
    handout.put(print, (np.ones(4, np.float32),), {})
    keeping = BatchKeeping(tmp_path, 0.5, print)
    keeping.begin({"dense/kernel": tf.ones([2**16])})  # a quarter of a MiB, of which three do not fit
    assert keeping._good is None
