"""Reference steps in sessions: what they measure, when, and that the training is what it is without them."""

from __future__ import annotations

import functools
import re
import warnings
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import precscope
from precscope import reference_budget
from precscope.errors_between import errors_between
from precscope.options import Options
from precscope.probes import reference_step
from precscope.probes.allocator import AllocatorMemory
from precscope.probes.batch_handout import Batch
from precscope.probes.internals.optimizers import loss_scale
from precscope.probes.keeper import PrecScopeWarning
from precscope.probes.model_records import ModelRecords
from precscope.probes.reference_schedule import reference_records_of
from tests.models import data, mlp, tape_step
from tests.test_shadow_step import assert_same, network, state_of

if TYPE_CHECKING:
    from pathlib import Path

    from precscope.reader import Run
    from precscope.reference_records import ReferenceRecord

layers = keras.layers
QUIET: dict[str, Any] = {"profile_steps": 0, "device_interval_s": 0.0}


def trained(model: keras.Model, path: Path | None, how: str, steps: int = 30, **options: Any) -> list[np.ndarray]:
    """Train, in a session where a path is given, and return the state afterwards."""
    x, y = data(8 * steps)
    keras.utils.set_random_seed(11)
    if path is None:
        _train(model, x, y, how, lambda step: step)
        return state_of(model)
    with precscope.profile(model, path, every=7, **(QUIET | options)) as session:
        _train(model, x, y, how, session.instrument)
    return state_of(model)


def _train(model: keras.Model, x: np.ndarray, y: np.ndarray, how: str, instrument: Any) -> None:
    if how == "fit":
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        return
    batches = [(tf.constant(x[i : i + 8]), tf.constant(y[i : i + 8])) for i in range(0, len(x), 8)]
    if how == "train_on_batch":
        for batch in batches:
            model.train_on_batch(*batch)
        return
    step = instrument(tf.function(tape_step(model, model.optimizer, model.loss), jit_compile=how == "compiled loop"))
    for batch in batches:
        step(*batch)


@functools.cache
def plain_state(how: str) -> list[np.ndarray]:
    return trained(network(jit_compile=False), None, how)


class Taken:
    """One reference step without a session, after one train step: `reference` and `reference_steps` as a run has."""

    def __init__(self, model: keras.Model, *batch: Any) -> None:
        batch = tuple(map(tf.constant, batch or [array[:8] for array in data()]))
        model.train_on_batch(*batch)
        before = state_of(model)
        scale = loss_scale(model.optimizer)
        step = reference_step.ReferenceStep(model, model.optimizer, ModelRecords(model, Options()).plans)
        measured = step.measure(Batch((batch,), {}), 1.0 if scale is None else float(scale))
        assert_same(before, state_of(model))
        record, self.reference = reference_records_of(0, "start", measured, 1)
        self.reference_steps = [record]


def of(run: Run | Taken, layer: str, kind: str, moment: str | None = None) -> ReferenceRecord:
    found = [item for item in run.reference if (item.layer, item.kind) == (layer, kind)]
    return next(item for item in reversed(found) if moment in (None, item.moment))


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine: the default takes reference steps as in a run whose first one takes few seconds."""
    monkeypatch.setattr(reference_budget, "_UNNOTICED_NS", 10**15)


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(
    ("how", "jit", "reference"),
    [
        ("fit", False, "auto"),
        ("fit", True, "auto"),
        ("train_on_batch", False, True),
        ("loop", True, "auto"),
    ],
)
def test_training_is_the_same_to_the_bit(tmp_path: Path, how: str, jit: bool, reference: Any):
    how = "compiled loop" if how == "loop" and jit else how
    with warnings.catch_warnings():
        warnings.simplefilter("error", PrecScopeWarning)
        referenced = trained(network(jit_compile=jit), tmp_path / "run", how, reference=reference, reference_budget=0.9)
    # Under XLA taps may change how a sampled step is fused: compare with the session without reference steps.
    plain = trained(network(jit_compile=jit), tmp_path / "plain", how, reference=False) if jit else plain_state(how)
    assert_same(plain, referenced)
    run = precscope.open_run(tmp_path / "run")
    assert [step.moment for step in run.reference_steps][:1] == ["start"]
    assert run.reference_steps[-1].moment == "end"
    assert {record.kind for record in run.reference} == {"activation", "gradient", "weight_gradient"}


def test_a_healthy_network_has_the_errors_of_rounding():
    run = Taken(network(jit_compile=False))
    first = run.reference_steps[0]
    assert (first.examples, first.batch, first.loss_scale, first.left_out) == (8, 8, 2.0**15, ())
    assert first.random.startswith("equal")
    assert first.loss_reference == pytest.approx(first.loss_policy, rel=0.01)
    for layer in ("hidden", "norm", "drop", "head"):
        for kind in ("activation", "gradient"):
            record = of(run, layer, kind, "start")
            assert record.count == (16 if layer == "head" else 64)
            # Half a unit in the last place of float16 is 2**-11 of a value, and errors of several layers add up.
            assert 0 < (record.relative_error or 0) < 2**-8, (layer, kind)
            assert (record.cosine or 0) > 0.9999
            assert record.flushed == record.overflowed == record.nans == 0
    assert of(run, "hidden", "activation").inherited_relative_error == 0  # its input is the batch itself
    assert (of(run, "norm", "activation").inherited_relative_error or 0) > 0
    assert of(run, "head", "activation").own_relative_error is None  # it computes in float32 anyway
    assert of(run, "hidden", "gradient").own_relative_error is None  # the batch wants no gradient
    assert of(run, "hidden", "weight_gradient").own_relative_error is not None


class Squares(keras.layers.Layer):
    """Leaves the range of float16."""

    def call(self, x: Any) -> Any:
        return keras.ops.square(x * 300)


def test_the_layer_that_overflows_has_the_own_error_and_its_followers_inherit_it():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, name="before", dtype="mixed_float16"),
            Squares(name="squares", dtype="mixed_float16"),
            layers.Rescaling(1e-3, name="after", dtype="mixed_float16"),
            layers.Dense(1, name="head", dtype="float32"),
        ]
    )
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-9)), "mse", jit_compile=False)
    run = Taken(model)
    squares, after = of(run, "squares", "activation", "start"), of(run, "after", "activation", "start")
    assert squares.overflowed > 0
    assert squares.own_overflowed == pytest.approx(squares.overflowed, abs=2)
    assert after.overflowed > 0
    assert after.own_overflowed == squares.overflowed  # what it gets is beyond float16: it needs float32 as well
    before = of(run, "before", "activation", "start")
    assert (before.overflowed, before.own_overflowed) == (0, 0)


class Halves(keras.layers.Layer):
    """Adds the mean square to the loss, beyond float16; the difference of its halves is its output."""

    def call(self, x: Any) -> Any:
        self.add_loss(tf.cast(tf.reduce_mean(tf.square(x)), "float32"))
        left, right = tf.split(x, 2, -1)
        return left - right


def test_what_rounding_the_input_alone_does_and_the_losses_that_a_layer_adds():
    inputs = keras.Input((8,), name="x")
    many = keras.initializers.Constant([[1000.0, 1000.25]])
    first = layers.Dense(1, kernel_initializer="ones", name="sum")(inputs)
    both = layers.Dense(2, use_bias=False, kernel_initializer=many, dtype="mixed_bfloat16", name="both")(first)
    outputs = layers.Dense(1, dtype="float32", name="head")(Halves(dtype="mixed_float16", name="halves")(both))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
    run = Taken(model, np.full((8, 8), 0.125, np.float32), np.zeros((8, 1), np.float32))
    output, loss = (
        next(r for r in run.reference if (r.layer, r.kind, r.name) == ("halves", "activation", name))
        for name in ("0", "added loss 0")
    )
    # 1,000.25 is 1,000.5 or 1,000.0 in float16, and the difference is all that there is.
    assert output.rounded_input_relative_error == pytest.approx(1.0, abs=0.01)
    assert of(run, "both", "activation").rounded_input_relative_error == 0  # 1 is 1 in every format
    assert of(run, "sum", "activation").rounded_input_relative_error is None  # it is given the data
    assert (loss.count, loss.own_overflowed, loss.overflowed) == (1, 1, 1)
    assert of(run, "head", "activation").rounded_input_relative_error is None


def test_flushed_gradients_are_counted_where_they_vanish():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, name="first", dtype="mixed_float16"),
            layers.Rescaling(2.0**-10, name="down", dtype="mixed_float16"),
            layers.Dense(1, name="head", dtype="float32"),
        ]
    )
    # No loss scale: what a custom loop without one, or a wrong compile, ends in.
    model.compile(keras.optimizers.SGD(1e-3), lambda y, p: keras.ops.mean(p) * 2.0**-12, jit_compile=False)
    run = Taken(model)
    assert run.reference_steps[0].loss_scale == 1.0
    arriving, own = of(run, "first", "gradient"), of(run, "down", "gradient")
    assert arriving.flushed == arriving.reference_nonzero == arriving.count
    assert own.flushed == 0
    assert own.own_flushed == own.own_reference_nonzero == arriving.count
    assert of(run, "first", "weight_gradient").cosine is None


def test_the_numbers_are_those_of_numpy():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5, name="dense", dtype="mixed_float16")])
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
    x = np.random.default_rng(0).standard_normal((16, 6)).astype(np.float32)
    record = of(Taken(model, x, np.zeros((16, 5), np.float32)), "dense", "activation")
    exact, rounded = x @ model.weights[0].numpy(), model.predict(x, verbose=0)
    expected = errors_between(exact, rounded)
    # Sums of six products, rounded in another order.
    assert record.relative_error == pytest.approx(expected.relative_error, rel=1e-3)
    assert record.own_relative_error == record.relative_error
    assert record.reference_norm == pytest.approx(np.linalg.norm(exact), rel=1e-6)


def test_moments_of_a_training_whose_scale_falls_first(tmp_path: Path):
    model = network(jit_compile=False)
    model.optimizer.initial_scale = 2.0**30
    trained(model, tmp_path / "run", "fit", steps=60, reference=True, reference_budget=1e-9)
    run = precscope.open_run(tmp_path / "run")
    moments = [step.moment for step in run.reference_steps]
    assert moments == ["start", "settled", "end"]
    start, settled, _ = run.reference_steps
    assert settled.loss_scale < start.loss_scale
    assert run.reference_steps[-1].step == run.samples[-1].step
    costs = {cost.kind: cost.count for cost in run.costs}
    assert costs["reference"] == 2
    assert costs["reference_compile"] == 1


class HardCoded(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        return keras.ops.cast(keras.ops.exp(keras.ops.cast(x, "float16")), "float32")


class FailsWide(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        return x + tf.constant(1.0, tf.float16)


class CastsBeforeCall(keras.layers.Layer):
    """Its twin, which is run by `call` alone, gets float32."""

    def __call__(self, x: Any, **kwargs: Any) -> Any:
        return super().__call__(tf.cast(x, self.compute_dtype) if tf.is_tensor(x) else x, **kwargs)

    def call(self, x: Any) -> Any:
        return x + tf.constant(1.0, self.compute_dtype)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (HardCoded, "computes in float16 by itself"),
        (FailsWide, "it fails in float32"),
        (functools.partial(CastsBeforeCall, autocast=False), "its twin in float16 fails"),
    ],
)
def test_layers_that_cannot_run_in_float32_are_left_out_and_named(kind: Any, words: str):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, name="first", dtype="mixed_float16"),
            kind(name="stubborn", dtype="mixed_float16"),
            layers.Dense(1, name="head", dtype="mixed_float16"),
        ]
    )
    model.compile("sgd", "mse", jit_compile=False)
    run = Taken(model)
    (left_out,) = run.reference_steps[0].left_out
    assert left_out.startswith("stubborn: ")
    assert words in left_out
    assert (of(run, "head", "activation").own_relative_error or 0) > 0


class FlipsADict(keras.layers.RandomFlip):
    """Hands its images on in a dict, into which Keras' augmentation layers write."""

    def call(self, images: Any, training: bool = True) -> Any:
        return super().call({"images": images}, training)["images"]


def test_layers_that_augment_images_are_compared_with_the_same_draws():
    policy = "mixed_float16"
    stack: dict[str, Any] = {
        "flip": layers.RandomFlip(name="flip", dtype=policy),
        "dict": FlipsADict(name="dict", dtype=policy),
        "turn": layers.RandomRotation(0.1, name="turn", dtype=policy),
        "zoom": layers.RandomZoom(0.1, name="zoom", dtype=policy),
        "shift": layers.RandomTranslation(0.1, 0.1, name="shift", dtype=policy),
        "crop": layers.RandomCrop(8, 8, name="crop", dtype=policy),
        "light": layers.RandomBrightness(0.1, (0, 1), name="light", dtype=policy),
        "contrast": layers.RandomContrast(0.3, (0, 1), name="contrast", dtype=policy),
    }
    head = [layers.Conv2D(2, 3, dtype=policy), layers.GlobalAveragePooling2D(dtype="float32")]
    model = keras.Sequential([keras.Input((10, 10, 3)), *stack.values(), *head])
    model.compile("sgd", "mse", jit_compile=False)
    rng = np.random.default_rng(3)
    run = Taken(model, rng.random((4, 10, 10, 3), np.float32), rng.random((4, 2), np.float32))
    assert run.reference_steps[0].left_out == ()
    for layer in stack:
        record = of(run, layer, "activation")
        assert 0 < (record.relative_error or 0) < 0.01, layer
        assert 0 < (record.own_relative_error or 0) < 0.005, layer


def test_variables_in_16_bits_are_computed_with_in_float32():
    run = Taken(mlp("bfloat16"))
    assert run.reference_steps[0].left_out == ()
    assert 2**-12 < (of(run, "hidden", "activation").relative_error or 0) < 2**-6


def test_layers_of_every_shape():
    """Sub-layers, a shared layer, two outputs, a loop with dropout in it, an embedding."""
    keras.utils.set_random_seed(1)
    policy = "mixed_float16"
    words = keras.Input((5,), dtype="int32")
    x = layers.Embedding(11, 8, name="embedding", dtype=policy)(words)
    x = layers.MultiHeadAttention(2, 4, name="attention", dropout=0.1, dtype=policy)(x, x)
    shared = layers.Dense(8, name="shared", dtype=policy)
    x = shared(shared(x))
    x, _, _ = layers.LSTM(6, return_state=True, dropout=0.2, recurrent_dropout=0.2, name="lstm", dtype=policy)(x)
    model = keras.Model(words, layers.Dense(2, name="head", dtype="float32")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), loss, jit_compile=False)
    rng = np.random.default_rng(2)
    run = Taken(model, rng.integers(0, 11, (8, 5)), rng.integers(0, 2, 8))
    assert run.reference_steps[0].left_out == ()
    assert of(run, "shared", "activation").count == 2 * 8 * 5 * 8  # two calls
    inner = [record for record in run.reference if record.layer.startswith("attention/")]
    assert {"attention/_query_dense", "attention/_softmax"} <= {record.layer for record in inner}
    assert {record.kind for record in run.reference if record.layer.startswith("lstm/")} == {"weight_gradient"}
    for layer in ("embedding", "attention", "shared", "lstm"):
        record = of(run, layer, "activation")
        assert 0 < (record.relative_error or 0) < 0.01, layer
        assert record.own_relative_error is not None, layer
    for layer in ("embedding", "attention/_query_dense", "shared", "lstm/cell"):
        record = of(run, layer, "weight_gradient")
        assert 0.999 < (record.cosine or 0) <= 1, layer
        assert record.own_relative_error is not None, layer


def test_a_batch_that_does_not_fit_is_sliced_and_then_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    most = 5
    whole = reference_step.ReferenceStep._measure

    def out_of_memory(self: Any, batch: Any, size: int, examples: int, *rest: Any) -> Any:
        if examples > most:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")
        return whole(self, batch, size, examples, *rest)

    monkeypatch.setattr(reference_step.ReferenceStep, "_measure", out_of_memory)
    run = Taken(network(jit_compile=False))
    assert {(step.examples, step.batch) for step in run.reference_steps} == {(4, 8)}
    assert of(run, "hidden", "activation").count == 4 * 8
    most = 0
    with pytest.warns(PrecScopeWarning, match="even a small slice of the batch does not fit .* training goes on"):
        after = trained(network(jit_compile=False), tmp_path / "skipped", "fit", reference=True)
    assert_same(plain_state("fit"), after)
    assert precscope.open_run(tmp_path / "skipped").reference_steps == ()


def test_a_host_with_little_memory_gets_a_slice(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reference_step, "free_host_bytes", lambda: 4_000)
    examples = Taken(network(jit_compile=False)).reference_steps[0].examples
    assert examples is not None
    assert 1 <= examples < 8


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(("how", "reference"), [("eager model", True), ("eager model", "auto"), ("eager loop", True)])
def test_where_no_reference_step_can_be_taken_the_notice_says_why(tmp_path: Path, how: str, reference: Any):
    model = network(jit_compile=False, run_eagerly=how == "eager model")
    x, y = data(16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PrecScopeWarning)
        with precscope.profile(model, tmp_path / "run", every=1, reference=reference, **QUIET) as session:
            step = session.instrument(lambda x, y: model.train_on_batch(x, y)) if how == "eager loop" else None
            for _ in range(2):
                (step or model.train_on_batch)(x, y)
    run = precscope.open_run(tmp_path / "run")
    (told,) = (notice.message for notice in run.notices if notice.source == "reference")
    assert told.startswith("no reference step can be taken: the " + ("train step is" if step else "model was compiled"))
    # Who did not ask for it finds it in the report.
    assert any(told in str(item.message) for item in caught) is (reference is True)
    assert run.reference_steps == ()
    assert len(run.samples) >= 1


def test_a_failing_reference_step_is_switched_off_and_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def failing(self: Any, *args: Any) -> Any:
        raise RuntimeError("as planned")

    monkeypatch.setattr(reference_step.ReferenceStep, "_measure", failing)
    plain = plain_state("fit")
    with pytest.warns(PrecScopeWarning, match="failed and is switched off: RuntimeError: as planned") as caught:
        assert_same(plain, trained(network(jit_compile=False), tmp_path / "run", "fit", reference=True))
    assert len(caught) == 1


def test_none_is_planned_where_they_are_switched_off(tmp_path: Path):
    assert Options().reference == "auto"
    with precscope.profile(network(jit_compile=False), tmp_path / "run", reference=False, **QUIET) as session:
        assert session._parts.extras.reference is None
        assert session._parts.extras.handout is None


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("without", ["samples", "16 bits"])
def test_by_default_none_is_taken_where_there_is_nothing_to_measure(tmp_path: Path, without: str):
    model = mlp("float32") if without == "16 bits" else network(jit_compile=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if without == "16 bits" else "ignore", PrecScopeWarning)
        with precscope.profile(
            model, tmp_path / "run", every=2, start=10**6 if without == "samples" else 0, **QUIET
        ) as session:
            model.fit(*data(32), batch_size=8, verbose=0)
    assert session._parts.extras.reference is not None
    assert session._parts.extras.reference._steps == {}  # nothing was even prepared
    run = precscope.open_run(tmp_path / "run")
    assert run.reference_steps == ()
    assert not [notice for notice in run.notices if notice.source == "reference"]


def test_by_default_one_that_is_too_dear_is_left_out_and_the_notice_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("_UNNOTICED_NS", "_UNNOTICED_AT_END_NS", "_SHARE_SO_FAR", "_SHARE_AT_END"):
        monkeypatch.setattr(reference_budget, name, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PrecScopeWarning)
        trained(network(jit_compile=False), tmp_path / "run", "fit", steps=9)
    run = precscope.open_run(tmp_path / "run")
    assert run.reference_steps == ()
    (told,) = (notice.message for notice in run.notices if notice.source == "reference")
    assert re.match(
        r"no reference step was taken: the first was expected to take \d+ s, .* the whole session took \d+ s", told
    )
    assert told.endswith("reference=True (precscope run --set reference=true) takes it in any case.")


@pytest.mark.parametrize(
    ("reference", "free", "may_take"), [("auto", 800, 400), ("auto", None, None), (True, 800, None)]
)
def test_on_a_gpu_only_half_of_what_is_free_is_taken_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: Any, free: int | None, may_take: int | None
):
    with precscope.profile(network(jit_compile=False), tmp_path / "run", reference=reference, **QUIET) as session:
        schedule = session._parts.extras.reference
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    monkeypatch.setattr(AllocatorMemory, "free", lambda self: free)
    assert schedule is not None
    assert schedule._free_bytes() == may_take


def test_a_sequential_model_inside_another_takes_float32_as_well():
    """It was built for the float16 that came to it, and would cast to that."""
    keras.utils.set_random_seed(1)
    policy = "mixed_float16"
    inner = keras.Sequential([layers.Dense(8, name="inner", dtype=policy)], name="block")
    inner.dtype_policy = policy
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, name="first", dtype=policy), inner, layers.Dense(1, dtype="float32")]
    )
    model.compile("sgd", "mse", jit_compile=False)
    assert model.get_layer("block").input_dtype == "float16"
    run = Taken(model)
    assert run.reference_steps[0].left_out == ()
    assert (of(run, "block/inner", "activation").inherited_relative_error or 0) > 0
    assert model.get_layer("block").input_dtype == "float16"
