"""Proof by replay, on real small models: what is found, what is left alone, what is refused."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import precscope
from precscope.cli import main
from precscope.errors import PolicyError, PrecScopeError, SessionError
from precscope.policy_file import read_policy
from precscope.probes import replayer, verify
from precscope.probes.internals.optimizers import is_dynamic
from precscope.probes.layer_policies import model_layers
from precscope.probes.verify import verify_model
from precscope.replay import Criterion, JudgedScales, Measured, Replay

QUIET = {"profile_steps": 0, "device_interval_s": 0, "gradients": False, "weights": False, "reference": False}


pytestmark = pytest.mark.usefixtures("few_timed_passes")


@keras.saving.register_keras_serializable("test_verify")
class Square(keras.layers.Layer):
    def call(self, x):
        return keras.ops.square(x)


class Stubborn(Square):
    """Computes in float16 whatever its policy says."""

    def call(self, x):
        return keras.ops.square(keras.ops.cast(x, "float16"))


class Particular(keras.layers.Layer):
    """Takes float16 and nothing else."""

    def call(self, x):
        return x + tf.zeros([], tf.float16)


def squares(*between, policy="mixed_float16", optimizer=None):
    """Values near 1,000 are squared, and scaled down again: both layers have to compute in float32, or neither."""
    keras.utils.set_random_seed(1)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        layers = [keras.Input((4,)), Square(name="square"), *between, keras.layers.Rescaling(1e-6, name="down")]
        layers += [keras.layers.Dense(6, "tanh", name="hidden"), keras.layers.Dropout(0.2, name="drop")]
        model = keras.Sequential([*layers, keras.layers.Dense(1, name="head")], name="squares")
        model.compile(optimizer or "adam", "mse", run_eagerly=True)  # nothing to trace: the replay is what is tested
    finally:
        keras.config.set_dtype_policy(before)
    return model


def numbers(size=1000.0, count=64):
    x = (size * (1 + 0.1 * np.random.default_rng(1).normal(size=(count, 4)))).astype(np.float32)
    return x, (x**2).sum(1, keepdims=True).astype(np.float32) * np.float32(1 / (4 * size**2))


def trained(path, model, data=None, **options):
    x, y = numbers() if data is None else data
    with precscope.profile(model, path, every=1, **({"keep_batches_mib": 4} | options), **QUIET) as session:
        model.fit(x, y, batch_size=16, epochs=2, verbose=0)
    return session


def everything(model):
    state = [variable.numpy().tolist() for variable in (*model.variables, *model.optimizer.variables)]
    policies = [layer._dtype_policy.name for layer in model_layers(model).values()]
    calls = [sorted(vars(layer)) for layer in model_layers(model).values()]
    return state, policies, calls, model.train_function, model.optimizer


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A run that overflows, and its verification."""
    path = tmp_path_factory.mktemp("broken") / "run"
    model = squares()
    session = trained(path, model)
    before = everything(model)
    verification = session.verify()
    return path, model, verification, before


def test_a_pair_that_only_helps_together_is_proven_minimal(broken):
    _, _, verification, _ = broken
    assert verification.proven
    assert verification.is_minimal
    assert set(verification.pins) == {"square", "down"}
    assert verification.before.worst.why_not == "the model's output is not finite"
    assert verification.before.worst.cosine is None
    assert verification.after.worst.cosine > 0.999
    assert verification.trials <= 5
    assert verification.bfloat16.judged == 3
    assert np.isfinite(verification.bfloat16.worst.cosine)  # bfloat16 has the range
    assert verification.weights == "as kept with each batch"
    assert len(verification.batches) == 3
    assert verification.prices["float32"].casts < verification.prices["plain"].casts
    assert set(verification.pin_prices) == {"square", "down"}
    assert verification.prices["plain"].memory_mib is None  # a CPU's allocator keeps no account


def test_nothing_of_the_model_is_changed(broken):
    _, model, _, before = broken
    assert everything(model) == before


def test_run_directory_report_and_policy_tell(broken, capsys):
    path, _, verification, _ = broken
    run = precscope.open_run(path)
    assert run.verification == verification
    policy = read_policy(path / "policy.yaml")
    assert policy.proven
    assert {pin.layer for pin in policy.pins} == {"square", "down"}
    assert policy.proof.cosine_before is None
    assert policy.proof.cosine_after > 0.999
    assert policy.pins[0].price.time_ms is not None
    assert main(["report", str(path)]) == 0
    report = " ".join(capsys.readouterr().out.split())
    assert "Proven by replaying 3 batches: 'square' and 'down' in float32 suffice." in report
    assert re.search(
        r"plain mixed_float16: the model's output is not finite with 'square' and 'down' in float32: (0\.999|1\.0)",
        report,
    )
    assert main(["policy", str(path)]) == 0
    assert "proven: true" in capsys.readouterr().out


def test_the_proven_policy_trains(broken):
    path, _, _, _ = broken
    model, twin = squares(), squares(policy="float32")
    precscope.apply_policy(model, path / "policy.yaml")
    losses = []
    for trained_one in (model, twin):
        trained_one.run_eagerly = False
        history = trained_one.fit(*numbers(), batch_size=16, epochs=15, verbose=0)
        losses.append(history.history["loss"][-1])
    assert losses[0] == pytest.approx(losses[1], rel=0.15)  # dropout draws other numbers in float16
    assert int(model.optimizer.iterations.numpy()) == 60


def test_the_page_shows_the_proof(broken, tmp_path):
    path, _, _, _ = broken
    assert main(["report", str(path), "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "in float32 suffice." in page
    assert "cosine to float32, plain mixed_float16" in page


@pytest.mark.parametrize("policy", ["mixed_bfloat16"])
def test_a_healthy_model_needs_nothing(tmp_path, policy):
    model = squares(policy=policy)
    session = trained(tmp_path / "run", model, numbers(size=1.0))
    verification = session.verify()
    assert verification.nothing_needed
    assert verification.trials == 1
    assert verification.pin_prices == {}
    assert verification.bfloat16 is None
    policy_file = read_policy(tmp_path / "run" / "policy.yaml")
    assert (policy_file.default, policy_file.pins, policy_file.proven) == (policy, (), True)
    assert policy_file.optimizer.loss_scale_optimizer == (policy == "mixed_float16")


def loop():
    """Return a model, its optimizer and the step of a custom loop."""
    model = squares(optimizer="sgd")
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01))
    loss_of = keras.losses.MeanSquaredError()

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            scaled = optimizer.scale_loss(loss_of(y, model(x, training=True)))
        optimizer.apply(tape.gradient(scaled, model.trainable_variables), model.trainable_variables)

    return model, optimizer, step


def test_a_custom_loop_inside_the_block_and_by_the_command(tmp_path, monkeypatch, capsys):
    model, optimizer, step = loop()
    x, y = (tf.constant(array[:16]) for array in numbers())
    with precscope.profile(
        model, tmp_path / "run", optimizer=optimizer, every=1, keep_batches_mib=4, **QUIET
    ) as session:
        watched = session.instrument(step)
        for _ in range(4):
            watched(x, y)
            session.step()
        verification = session.verify()
        watched(x, y)
        session.step()
    assert set(verification.pins) == {"square", "down"}
    assert precscope.open_run(tmp_path / "run").record.status == "finished"
    (tmp_path / "loop.py").write_text("from tests.test_verify import loop, squares\n")
    monkeypatch.chdir(tmp_path)
    assert main(["verify", "run", "--model", "loop.py:loop", "--batches", "1"]) == 0
    assert "Proven by replaying 1 batch: 'square' and 'down' in float32" in " ".join(capsys.readouterr().out.split())
    assert main(["verify", "run", "--model", "loop.py:squares"]) == 2
    assert "holds the arguments of a custom loop's step, and no such step was given" in capsys.readouterr().err


def test_a_step_of_a_loop_does_not_replay_batches_of_fit(broken):
    path, _, _, _ = broken
    model, optimizer, step = loop()
    with pytest.raises(PrecScopeError, match=r"is one of fit.*Give the compiled model alone"):
        verify_model(model, precscope.open_run(path), optimizer=optimizer, step=step)


def test_a_set_that_fails_is_not_replayed_to_the_end(broken, monkeypatch):
    """Plain mixed precision is, for all its batches are shown; of any other set one failure is enough."""
    path, _, verification, _ = broken
    measured = []
    until_failure = replayer.Replayer.measure_until_failure
    monkeypatch.setattr(
        replayer.Replayer,
        "measure_until_failure",
        lambda self, *args: measured.append(until_failure(self, *args)) or measured[-1],
    )
    again = verify_model(squares(), precscope.open_run(path))
    assert (again.pins, again.trials) == (verification.pins, verification.trials)
    assert len(measured) == again.trials - 1  # the empty set was measured as plain mixed precision
    assert [len(set_of_layers.replays) for set_of_layers in measured if not set_of_layers.passed] == [1, 1]
    assert {set_of_layers.judged for set_of_layers in measured if set_of_layers.passed} == {3}
    assert again.before.judged == 3
    assert again.traces == 1 + again.trials + 1  # float32, the sets, bfloat16
    assert set(again.took_s) == {"findings and batches", "float32", "as trained", "search", "bfloat16", "pricing"}


class Cast(keras.Model):
    """A subclassed model, which casts what it is fed by a policy of its own."""

    def __init__(self, **options):
        super().__init__(**options)
        self.scale = keras.layers.Rescaling(1e-5, name="scale", dtype=self.dtype_policy)
        self.head = keras.layers.Dense(1, name="head", dtype=self.dtype_policy)

    def call(self, x):
        return self.head(self.scale(x))


def test_a_subclassed_model_that_casts_its_input_is_pinned_itself(tmp_path):
    model = Cast(dtype="mixed_float16")
    model.compile("adam", "mse", run_eagerly=True)
    session = trained(tmp_path / "run", model, numbers(size=1e5))
    verification = session.verify()
    assert {"(model)", "scale"} <= set(verification.pins)
    applied = precscope.apply_policy(model, tmp_path / "run" / "policy.yaml")
    assert set(applied.changed) == set(verification.pins)
    assert np.isfinite(model.predict(numbers(size=1e5)[0], verbose=0)).all()


# Layers that cannot be tried


def test_a_layer_that_does_not_follow_its_policy_is_named_where_nothing_can_be_compared(tmp_path):
    session = trained(tmp_path / "run", squares(Stubborn(name="stubborn")))
    with pytest.raises(PrecScopeError, match="may be the cause: 'stubborn': its output is float16 although its policy"):
        session.verify()


def test_a_layer_that_fails_in_float32_is_left_out_and_the_rest_proven(tmp_path):
    inside = keras.Sequential([keras.Input((4,)), Particular(name="particular", dtype="mixed_float16")], name="inside")
    model = keras.Sequential(
        [
            keras.Input((4,)),
            inside,
            Square(name="square", dtype="mixed_float16"),
            keras.layers.Rescaling(1e-6, name="down", dtype="mixed_float16"),
            keras.layers.Dense(1, name="head"),
        ]
    )
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), "mse", run_eagerly=True)
    verification = trained(tmp_path / "run", model).verify()
    assert "it failed in that policy" in verification.left_out["inside/particular"]
    assert set(verification.pins) == {"square", "down"}


def test_a_pure_float16_layer_is_left_out(tmp_path):
    model = squares()
    model.add(keras.layers.Dense(1, dtype="float16", name="pure"))
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), "mse", run_eagerly=True)
    verification = trained(tmp_path / "run", model).verify()
    assert "its variables are float16" in verification.left_out["pure"]
    assert set(verification.pins) == {"square", "down"}


# What is refused


def test_without_batches_there_is_an_error_and_a_dataset_helps(tmp_path):
    model = squares()
    session = trained(tmp_path / "run", model, keep_batches_mib=0)
    with pytest.raises(PrecScopeError, match=r"kept no batches.*keep_batches_mib=64.*\(model, dataset\)"):
        session.verify()
    dataset = tf.data.Dataset.from_tensor_slices(numbers()).batch(16)
    verification = session.verify(dataset=dataset, most_batches=1)
    assert set(verification.pins) == {"square", "down"}
    assert verification.weights == "as the model has them now"


def test_a_session_that_has_not_begun_cannot_be_verified(tmp_path):
    with pytest.raises(SessionError, match="before the session began"):
        precscope.profile(squares(), tmp_path / "run").verify()


def test_another_model_is_refused(broken):
    path, _, _, _ = broken
    other = squares(keras.layers.Dense(4, name="extra"))
    with pytest.raises(PolicyError, match=r"made for another model.* it has 'extra' beside"):
        verify_model(other, precscope.open_run(path))
    wider = squares()
    wider.pop()
    wider.add(keras.layers.Dense(2, name="head"))
    wider.compile("adam", "mse")
    with pytest.raises(PrecScopeError, match=r"weights kept with step .* do not fit this model"):
        verify_model(wider, precscope.open_run(path))
    unbuilt = keras.Sequential([keras.layers.Dense(1)])
    with pytest.raises(PrecScopeError, match="is not built"):
        verify_model(unbuilt, precscope.open_run(path))
    with pytest.raises(PrecScopeError, match="is not compiled"):
        verify_model(keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]), precscope.open_run(path))
    with pytest.raises(PrecScopeError, match=r"expects the run's keras\.Model, received str"):
        verify_model("model", precscope.open_run(path))


def test_lost_weights_have_nothing_to_be_compared_with(tmp_path):
    model = squares(policy="float32")
    model.get_layer("head").set_weights([np.full((6, 1), np.nan), np.zeros(1)])
    session = trained(tmp_path / "run", model)
    with pytest.raises(PrecScopeError, match=r"None of the 3 batches gives finite gradients in float32 .steps"):
        session.verify()
    assert not (tmp_path / "run" / "verification.yaml").exists()


def test_weights_that_the_first_step_loses_are_replayed_as_they_were_before(tmp_path):
    """A fixed scale that is too high: no step is skipped, and the first one makes the weights NaN."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,), name="input")
    hidden = keras.layers.Dense(6, "tanh", name="hidden", dtype="mixed_float16")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, name="head", dtype="mixed_float16")(hidden))
    optimizer = keras.optimizers.Adam(loss_scale_factor=2.0**20)
    model.compile(optimizer, "mse", run_eagerly=True, auto_scale_loss=False)
    session = trained(tmp_path / "run", model, numbers(size=1.0))
    assert np.isnan(model.get_weights()[0]).any()
    verification = session.verify(most_batches=2, most_tests=1)
    assert verification.weights.startswith("as kept with each batch, of step 1, ")
    assert verification.weights.endswith(" from before they were lost")
    assert verification.before.worst.overflowed
    assert all(replay.loss_scale == 2.0**20 for replay in verification.before.replays)


# Noise of batches, and the loss scale


def healthy(batches=3):
    """A model, and batches to replay, each at weights of its own."""
    keras.utils.set_random_seed(1)
    layers = [keras.Input((4,)), keras.layers.Dense(6, "tanh", name="hidden", dtype="mixed_float16")]
    model = keras.Sequential([*layers, keras.layers.Dense(1, name="head")])
    model.compile("sgd", "mse", run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    x, y = numbers(size=1.0)
    random = np.random.default_rng(1)
    kept = []
    for step in range(batches):
        weights = [tf.constant(w + 0.1 * random.normal(size=w.shape), tf.float32) for w in model.get_weights()]
        rows = slice(8 * step, 8 * step + 8)
        kept.append(replayer.ReplayBatch(step, ((tf.constant(x[rows]), tf.constant(y[rows])),), weights=weights))
    return model, kept


def test_the_noise_is_that_of_all_batches_at_the_weights_of_one():
    model, batches = healthy()
    weights = [variable.numpy() for variable in model.variables]
    narrow = Criterion(gradient_cosine=1.0, variable_cosine=1.0)  # rounding fails it, and noise excuses that
    replays = replayer.Replayer(model, model.optimizer)
    replays.set_reference(batches, {"hidden": "float32"})
    measured = replays.measure({"hidden": "mixed_float16"}, JudgedScales((1.0,)), narrow)
    assert [replay.rule for replay in measured.replays] == ["noise"] * 3
    assert replays.traces == 2  # once for each setting
    for variable, value in zip(model.variables, weights, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    for batch, replay in zip(batches, measured.replays, strict=True):
        gradients = {}
        for policy in ("float32", "mixed_float16"):
            model.get_layer("hidden").dtype_policy = policy
            gradients[policy] = np.array([gradient_of(model, batch.weights, other) for other in batches], np.float64)
        expected, errors = gradients["float32"], gradients["mixed_float16"] - gradients["float32"]
        added = (errors**2).sum(1).mean() / np.var(expected, 0, ddof=1).sum()
        shared = np.mean([errors[i] @ errors[j] for i in range(3) for j in range(3) if i != j])
        moved = np.sqrt(max(shared, 0) / (expected.mean(0) ** 2).sum())
        assert (replay.added_variance, replay.moved_mean) == (
            pytest.approx(added, rel=0.02),
            pytest.approx(moved, rel=0.02),
        )


def gradient_of(model, weights, batch):
    for variable, value in zip(model.trainable_variables, weights, strict=True):
        variable.assign(value)
    ((x, y),) = batch.args
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((tf.cast(model(x, training=True), tf.float32) - y) ** 2)
    return np.concatenate([np.ravel(g) for g in tape.gradient(loss, model.trainable_variables)])


def test_one_batch_alone_has_no_noise_that_could_excuse():
    model, batches = healthy(1)
    replays = replayer.Replayer(model, model.optimizer)
    replays.set_reference(batches, {"hidden": "float32"})
    narrow = Criterion(gradient_cosine=1.0, variable_cosine=1.0)
    assert not replays.measure({"hidden": "mixed_float16"}, JudgedScales((1.0,)), narrow).passed


@pytest.mark.parametrize(("suspects", "pins"), [("abc", ("a", "b", "c")), ("a", ("a", "b"))])
def test_a_part_of_the_suspects_may_not_pay_with_the_loss_scale(suspects, pins):
    """'c' overflows at the first scale. Pinned with the others it does not; left out, three halvings would hide it."""

    def replay(scale, passed, overflowed=False):
        why_not = None if passed else "the gradient of 'c' is not finite"
        return Replay(1, scale, passed, why_not, 1.0 if passed else None, 1.0, None, None, 0.5, 0.5, overflowed)

    class Measuring:
        def measure_until_failure(self, names, scales, criterion):
            fallen = 0 if names >= {"a", "b", "c"} else 2 if names >= {"a", "b"} else None
            if fallen is None or fallen > scales.may_fall:
                return Measured((replay(2.0**15, False, overflowed=True),), 1)
            return Measured((replay(2.0**15 / 2**fallen, True),), 1, fallen)

    class Setup:
        def policies(self, names):
            return names

    Setup.suspects, Setup.others = tuple(suspects), tuple(name for name in "abc" if name not in suspects)
    found = verify._search(Setup(), Measuring(), JudgedScales((2.0**15,), (), 3), Criterion(), (None, None), {})
    assert found.names == pins


# The command


def test_the_command_proves_with_a_users_function(broken, tmp_path, monkeypatch, capsys):
    path, _, _, _ = broken
    (tmp_path / "train.py").write_text("from tests.test_verify import squares\n\ndef build():\n    return squares()\n")
    (tmp_path / "other.py").write_text("def build():\n    raise OSError('no data')\n")
    monkeypatch.chdir(tmp_path)
    assert main(["verify", str(path), "--model", "train.py:build", "--batches", "1"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Proven by replaying 1 batch: 'square' and 'down' in float32 suffice." in out
    assert "policy.yaml Apply it: precscope.apply_policy" in out
    assert main(["verify", str(path), "--model", "other.py:build"]) == 2
    assert "no data" in capsys.readouterr().err
    assert main(["verify", str(path), "--model", "train.py:build", "--weights", "none.weights.h5"]) == 2
    assert "File 'none.weights.h5' does not exist" in capsys.readouterr().err
    assert keras.config.dtype_policy().name == "float32"
    assert not is_dynamic(squares(policy="float32").optimizer)
