"""Proof of what 16 bits would need, on runs that were trained in float32 or under another default policy."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import precscope
import precscope.reports.proof_view
from precscope.cli import main
from precscope.errors import PrecScopeError
from precscope.policy_file import read_policy
from tests.test_verify import QUIET, numbers, squares, trained

pytestmark = pytest.mark.usefixtures("few_timed_passes")


@pytest.fixture(scope="module")
def float32_run(tmp_path_factory):
    """A run in float32, of a model of which two layers could not follow into float16, and its verification."""
    path = tmp_path_factory.mktemp("float32") / "run"
    session = trained(path, squares(policy="float32"))
    return path, session.verify()


def test_of_a_run_in_float32_it_is_proven_what_mixed_float16_would_need(float32_run, capsys):
    path, verification = float32_run
    assert (verification.default, verification.trained) == ("mixed_float16", "float32")
    assert set(verification.suspects) == {"square", "down"}  # values beyond float16, and what reads them
    assert set(verification.pins) == {"square", "down"}
    assert verification.before_policy == "mixed_float16"
    assert verification.before.worst.why_not == "the model's output is not finite"
    assert main(["report", str(path)]) == 0
    report = " ".join(capsys.readouterr().out.split()).replace("▌ ", "")
    assert "Nothing is wrong with this run in float32. For mixed_float16 keep 2 of 5 layers in float32" in report
    assert "in mixed_float16, 'square' and 'down' in float32 suffice." in report
    assert "the others follow mixed_float16." in report


def test_its_policy_makes_a_float32_model_train_in_float16(float32_run):
    path, _ = float32_run
    policy = read_policy(path / "policy.yaml")
    assert (policy.default, policy.optimizer.loss_scale_optimizer) == ("mixed_float16", True)
    model = squares(policy="float32")
    applied = precscope.apply_policy(model, policy)
    assert applied.wrapped
    assert {model.get_layer(name).compute_dtype for name in ("hidden", "drop", "head")} == {"float16"}
    assert {model.get_layer(name).compute_dtype for name in ("square", "down")} == {"float32"}
    assert np.isfinite(model.fit(*numbers(), batch_size=16, verbose=0).history["loss"]).all()


def test_another_default_policy_is_tested_where_it_is_asked_for(float32_run, tmp_path, monkeypatch, capsys):
    path, _ = float32_run
    (tmp_path / "train.py").write_text("from tests.test_verify import squares\n\ndef build():\n    return squares()\n")
    monkeypatch.chdir(tmp_path)
    command = ["verify", str(path), "--model", "train.py:build", "--batches", "1", "--default", "mixed_bfloat16"]
    before = (path / "verification.yaml").read_text(), (path / "policy.yaml").read_text()
    try:
        assert main(command) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "Proven by replaying 1 batch: in mixed_bfloat16, no layer needs float32." in out
        assert "plain mixed_bfloat16" in out
        policy = read_policy(path / "policy.yaml")
        assert (policy.default, policy.pins, policy.optimizer.loss_scale_optimizer) == ("mixed_bfloat16", (), False)
    finally:
        (path / "verification.yaml").write_text(before[0])
        (path / "policy.yaml").write_text(before[1])


def test_what_was_trained_is_shown_beside_another_default(tmp_path):
    verification = trained(tmp_path / "run", squares()).verify(default="mixed_bfloat16")
    assert verification.nothing_needed
    assert (verification.before_policy, verification.before.passed) == ("mixed_float16", False)
    assert verification.after.passed


def test_float32_is_no_default_to_test(tmp_path):
    session = trained(tmp_path / "run", squares(policy="float32"))
    with pytest.raises(PrecScopeError, match=r"Cannot test the default policy 'float32': expected one .* in 16 bits"):
        session.verify(default="float32")


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_loop_that_never_scales_its_loss_is_judged_without_a_scale(tmp_path, policy):
    """Gradients that no scale multiplied were divided by one, and found 32,768 times too short."""
    model = squares(policy=policy, optimizer="sgd")
    optimizer, loss_of = keras.optimizers.SGD(0.01), keras.losses.MeanSquaredError()

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    x, y = (tf.constant(array[:16]) for array in numbers(size=1.0))
    with precscope.profile(
        model, tmp_path / "run", optimizer=optimizer, every=1, keep_batches_mib=4, **QUIET
    ) as session:
        watched = session.instrument(step)
        for _ in range(3):
            session.step(watched(x, y))
    verification = session.verify(most_batches=1)
    assert verification.nothing_needed
    assert {replay.loss_scale for replay in verification.after.replays} == {1.0}
    shown = dict(precscope.reports.proof_view.proof_view(verification).rows)
    assert "never calls optimizer.scale_loss" in shown["loss scale"]
