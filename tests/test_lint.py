"""Lint: each check finds its fault in a real model, and leaves healthy models alone."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from precscope.cli import main
from precscope.errors import PrecScopeError
from precscope.probes.lint import lint_entry, lint_model
from tests.lint_models import (
    FLOAT16,
    CarefulNorm,
    Float16Op,
    IdsAsNumbers,
    OwnTrainStep,
    build_bad_norm,
    build_good,
    with_layer,
)
from tests.models import mlp

if TYPE_CHECKING:
    from pathlib import Path


def found(model: keras.Model, dataset: Any = None) -> dict[str, Any]:
    """Return what lint finds by check, remarks left out."""
    return {f.check: f for f in lint_model(model, dataset).findings if f.severity != "info"}


def test_keras_own_layers_raise_no_alarm() -> None:
    result = lint_model(*build_good())
    assert [f for f in result.findings if f.severity != "info"] == []
    assert result.not_checked == ()
    assert result.float16_layers > 10


def test_lint_leaves_the_model_as_it_was() -> None:
    model, dataset = build_good()
    before = model.get_weights()
    lint_model(model, dataset)
    assert not any("call" in vars(layer) for layer in model._flatten_layers())
    assert not {"apply", "scale_loss"} & set(vars(model.optimizer))
    for first, second in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)
    assert int(model.optimizer.iterations.numpy()) == 0


def risky_exp(x: Any) -> Any:
    return tf.exp(x)


OPERATIONS = {
    "float16_exp": risky_exp,
    "float16_pow": lambda x: tf.pow(x, 3.0),
    "float16_square": lambda x: tf.square(x),
    "float16_log": lambda x: tf.math.log(x),
    "float16_cumsum": lambda x: tf.cumsum(x, axis=-1),
    "float16_rsqrt": lambda x: tf.math.rsqrt(x),
    "float16_mean": lambda x: x - tf.reduce_mean(x, axis=-1, keepdims=True),
    "float16_sum": lambda x: x / tf.reduce_sum(x),
    "constant_overflows": lambda x: x + tf.where(x > 0, tf.zeros_like(x), -1e9 * tf.ones_like(x)),
    "constant_vanishes": lambda x: x / (x + 1e-10),
}


@pytest.mark.parametrize("check", OPERATIONS)
def test_a_risky_operation_is_named_with_its_layer_and_line(check: str) -> None:
    findings = found(with_layer(Float16Op(OPERATIONS[check], name="mine"), features=1024))
    assert list(findings) == [check]
    finding = findings[check]
    assert (finding.layer, finding.severity) == ("mine", "warning")
    assert finding.place is not None
    assert finding.place.startswith("test_lint.py:")
    if check == "float16_exp":
        assert finding.place.endswith(": return tf.exp(x)")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x - tf.reduce_mean(x, axis=-1, keepdims=True),  # over 16 elements
        lambda x: x - keras.ops.mean(x, axis=-1, keepdims=True),
        lambda x: tf.cast(tf.exp(tf.cast(x, tf.float32)), x.dtype),
        lambda x: tf.maximum(x, 0.0) + 1e-3,
        lambda x: x * 1e-9 if x.dtype == tf.float32 else x - 3e4,
    ],
)
def test_harmless_operations_are_left_alone(function: Any) -> None:
    assert found(with_layer(Float16Op(function))) == {}


def test_keras_mean_over_many_elements_computes_in_float32() -> None:
    layer = Float16Op(lambda x: x - keras.ops.mean(x, axis=-1, keepdims=True))
    assert found(with_layer(layer, features=4096)) == {}


def test_a_norm_by_hand_and_its_epsilon() -> None:
    findings = found(build_bad_norm())
    assert set(findings) == {"float16_square", "float16_sum", "float16_rsqrt", "constant_vanishes", "small_epsilon"}
    assert "epsilon=1.00e-08 is zero in float16" in findings["small_epsilon"].sentence
    assert found(with_layer(CarefulNorm(), features=2048)) == {}


def test_an_epsilon_that_is_subnormal_is_a_remark() -> None:
    class Subnormal(keras.layers.Layer):
        eps = 0.0

        def call(self, x: Any) -> Any:
            return x + 1e-3

    layer = Subnormal(dtype=FLOAT16)
    layer.eps = 1e-6
    (finding,) = [f for f in lint_model(with_layer(layer)).findings if f.check == "small_epsilon"]
    assert (finding.severity, finding.layer) == ("info", "subnormal")


def test_ids_that_become_numbers() -> None:
    ids = keras.Input((4,), dtype="int32")
    for policy, told in ((FLOAT16, True), ("float32", False)):
        outputs = keras.layers.Dense(8, dtype="float32")(IdsAsNumbers(dtype=policy)(ids))
        model = keras.Model(ids, outputs)
        assert ("integers_cast" in found(model)) is told
    embedded = keras.layers.Embedding(64, 8, dtype=FLOAT16)(ids)
    model = keras.Model(ids, keras.layers.Dense(8, dtype="float32")(embedded))
    assert found(model) == {}


@pytest.mark.parametrize("wrapped", [True, False])
def test_an_optimizer_that_is_not_wrapped(wrapped: bool) -> None:
    """The silent way: a policy of single layers, under which Keras wraps nothing."""
    optimizer: Any = keras.optimizers.SGD()
    if wrapped:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    findings = found(with_layer(keras.layers.Dense(8, dtype=FLOAT16), optimizer=optimizer))
    assert ("unwrapped_optimizer" in findings) is not wrapped


def test_an_optimizer_that_a_policy_map_leaves_unwrapped() -> None:
    keras.config.set_dtype_policy(keras.dtype_policies.DTypePolicyMap(default_policy=FLOAT16))
    try:
        model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8), keras.layers.Dense(8, dtype="float32")])
        model.compile("sgd", "mse")
        findings = found(model)
    finally:
        keras.config.set_dtype_policy("float32")
    assert findings["unwrapped_optimizer"].severity == "error"


def test_a_loss_scale_that_buys_nothing() -> None:
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    for policy, told in (("mixed_bfloat16", True), ("float32", True), (FLOAT16, False)):
        model = with_layer(keras.layers.Dense(8, dtype=policy), optimizer=optimizer)
        assert ("needless_loss_scaling" in {f.check for f in lint_model(model).findings}) is told


def test_outputs_in_16_bits_and_sizes() -> None:
    findings = {f.check: f for f in lint_model(mlp("mixed_float16")).findings}
    assert findings["output_in_16_bits"].severity == "warning"
    assert findings["float16_softmax"].layer == "head"
    assert "'hidden' and 'head'" in findings["size_not_multiple_of_8"].sentence
    assert found(mlp("float32")) == {}


@pytest.mark.parametrize(
    ("scale", "clip", "words"),
    [
        (lambda optimizer, loss: optimizer.scale_loss(loss), lambda g: g, None),
        (lambda optimizer, loss: loss, lambda g: g, "never calls optimizer.scale_loss"),
        (
            lambda optimizer, loss: optimizer.scale_loss(loss),
            lambda g: tf.clip_by_global_norm(g, 1.0)[0],
            "clips gradients that still carry the loss scale",
        ),
    ],
    ids=["right", "never", "clipped"],
)
def test_a_train_step_of_ones_own(scale: Any, clip: Any, words: str | None) -> None:
    model = OwnTrainStep(scale, clip)
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), "mse")
    batch = (np.zeros((4, 8), np.float32), np.zeros((4, 8), np.float32))
    model(batch[0])
    findings = found(model, tf.data.Dataset.from_tensors(batch))
    if words is None:
        assert findings == {}
    else:
        assert words in findings["loss_scaling_misused"].sentence


def test_what_cannot_be_looked_at_is_told() -> None:
    model = OwnTrainStep(None, None)  # no functional model, not built, not compiled
    result = lint_model(model)
    assert any("the model's inputs are not known" in reason for reason in result.not_checked)
    assert any("not compiled" in reason for reason in result.not_checked)

    layer = Float16Op(tf.identity)
    model = with_layer(layer)
    layer.function = lambda x: tf.constant([[0.0]]) @ x  # float32 times float16
    result = lint_model(model)
    assert any(reason.startswith("operations: tracing failed") for reason in result.not_checked)


@pytest.mark.parametrize("width", [80, 120])
def test_the_command(repository: Path, width: int) -> None:
    """In a process of its own: TensorFlow may hide its GPUs only before it has begun."""
    code = "from precscope.cli import run; run()"
    entry = f"{repository / 'tests' / 'lint_models.py'}:build_bad_norm"
    environment = {"COLUMNS": str(width), "PYTHONPATH": str(repository), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code, "lint", entry], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "'norm': Squares in float16: infinite from 256 on" in " ".join(done.stdout.split())
    assert "lint_models.py:" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= width
    assert done.stderr == ""


def test_json_and_exit_codes(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = f"{repository / 'tests' / 'lint_models.py'}:build_good"
    assert main(["lint", entry, "--format", "json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["format"], result["model"]) == ("precscope-lint", "good")
    assert main(["lint", entry, "--policy", "float17"]) == 2
    assert "Keras knows no dtype policy 'float17'" in capsys.readouterr().err


def test_an_entry_that_returns_something_else(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text("def build():\n    return 3\n\n\ndef fail():\n    return 1 / 0\n")
    with pytest.raises(PrecScopeError, match=r"must return a compiled keras\.Model.*it returned int"):
        lint_entry(f"{tmp_path / 'other.py'}:build")
    with pytest.raises(PrecScopeError, match=r"raised ZeroDivisionError: division by zero \(other\.py:6\)"):
        lint_entry(f"{tmp_path / 'other.py'}:fail")
