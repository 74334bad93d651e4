"""Old tf.keras calls, made for real against the installed Keras: each error names what to write instead."""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from precscope.errors import SessionError
from precscope.probes.legacy import LEGACY_CALLS, add_legacy_note, check_loss_scale_arguments, legacy_hint, legacy_hints

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

precision = tf.keras.mixed_precision


def adam() -> Any:
    return keras.optimizers.Adam()


def wrapped() -> Any:
    return precision.LossScaleOptimizer(adam())


def names(module: str, name: str) -> Callable[[], object]:
    """`from module import name`."""

    def load() -> None:
        exec(f"from {module} import {name}", {})

    return load


def graph_rewrite_then_compile() -> None:
    rewrite = tf.compat.v1.mixed_precision.enable_mixed_precision_graph_rewrite
    optimizer = rewrite(tf.compat.v1.train.AdamOptimizer())
    keras.Sequential([keras.layers.Dense(1)]).compile(optimizer, "mse")


#: The old call, and a word of the new one that its error must carry.
OLD_CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "scale_dynamic": (lambda: precision.LossScaleOptimizer(adam(), loss_scale="dynamic"), "initial_scale"),
    "scale_fixed": (lambda: precision.LossScaleOptimizer(adam(), loss_scale=128), "loss_scale_factor=128"),
    "not_dynamic": (lambda: precision.LossScaleOptimizer(adam(), dynamic=False), "auto_scale_loss=False"),
    "optimizer_keyword": (lambda: precision.LossScaleOptimizer(optimizer=adam()), "inner_optimizer"),
    "get_scaled_loss": (lambda: wrapped().get_scaled_loss(1.0), r"optimizer\.scale_loss\(loss\)"),
    "get_unscaled_gradients": (lambda: wrapped().get_unscaled_gradients([]), "apply_gradients"),
    "plain_get_scaled_loss": (lambda: adam().get_scaled_loss(1.0), r"optimizer\.scale_loss\(loss\)"),
    "minimize": (lambda: wrapped().minimize(lambda: 0.0, []), r"tape\.gradient"),
    "loss_scale": (lambda: wrapped().loss_scale, "dynamic_scale"),
    "private_loss_scale": (lambda: wrapped()._loss_scale, "dynamic_scale"),
    "dynamic_counter": (lambda: wrapped().dynamic_counter, "step_counter"),
    "dynamic": (lambda: wrapped().dynamic, "always dynamic"),
    "policy_scale": (lambda: precision.Policy("mixed_float16", loss_scale="dynamic"), r"keras\.DTypePolicy"),
    "policy_scale_positional": (lambda: precision.Policy("mixed_float16", 128), r"keras\.DTypePolicy"),
    "global_policy_scale": (lambda: precision.global_policy().loss_scale, r"model\.optimizer\.dynamic_scale"),
    "experimental_policy": (lambda: precision.experimental.Policy("mixed_float16"), r"keras\.DTypePolicy"),
    "experimental_set": (lambda: precision.experimental.set_policy("mixed_float16"), "set_dtype_policy"),
    "experimental_from": (names("tensorflow.keras.mixed_precision", "experimental"), "set_dtype_policy"),
    "experimental_import": (names("tensorflow.keras.mixed_precision.experimental", "Policy"), "DTypePolicy"),
    "keras_experimental": (lambda: keras.mixed_precision.experimental.Policy, "DTypePolicy"),
    "set_policy": (lambda: precision.set_policy("mixed_float16"), "set_dtype_policy"),
    "set_policy_from": (names("tensorflow.keras.mixed_precision", "set_policy"), "set_dtype_policy"),
    "rewrite": (lambda: tf.train.experimental.enable_mixed_precision_graph_rewrite(adam()), "set_dtype_policy"),
    "rewrite_v1": (
        lambda: tf.compat.v1.train.experimental.enable_mixed_precision_graph_rewrite(adam()),
        "set_dtype_policy",
    ),
    "rewrite_compile": (graph_rewrite_then_compile, "set_dtype_policy"),
    "DynamicLossScale": (lambda: tf.train.experimental.DynamicLossScale(), r"LossScaleOptimizer\(optimizer\)"),
    "FixedLossScale": (lambda: tf.train.experimental.FixedLossScale(128), "loss_scale_factor"),
    "tf_mixed_precision": (lambda: tf.mixed_precision.experimental.FixedLossScale(128), "loss_scale_factor"),
    "experimental_autocast": (lambda: keras.layers.Dense(1, experimental_autocast=False), "autocast=False"),
}


@pytest.mark.parametrize(("call", "words"), OLD_CALLS.values(), ids=OLD_CALLS.keys())
def test_each_old_call_names_the_new_one(call: Callable[[], object], words: str) -> None:
    with pytest.raises(Exception, match=r"\w") as caught, legacy_hints():
        call()
    (note,) = caught.value.__notes__
    assert note.startswith("PrecScope: ")
    assert re.search(words, note)


def test_every_row_of_the_table_is_met_by_a_real_call() -> None:
    met = {legacy_hint(_error_of(call)) for call, _ in OLD_CALLS.values()}
    assert met == {row.hint for row in LEGACY_CALLS}


def _error_of(call: Callable[[], object]) -> Exception:
    with pytest.raises(Exception, match=r"\w") as caught:
        call()
    return caught.value


def test_every_row_is_documented(repository: Path) -> None:
    page = (repository / "docs" / "migrating_from_tf_keras.md").read_text()
    assert [row.old for row in LEGACY_CALLS if f"| `{row.old}` |" not in page] == []


def test_other_errors_are_left_alone() -> None:
    error = AttributeError("'Dense' object has no attribute 'loss_scale'")
    add_legacy_note(error)
    assert not hasattr(error, "__notes__")
    assert legacy_hint(ValueError("Shapes do not match")) is None
    assert legacy_hint(_error_of(lambda: importlib.import_module("tensorflow.no_such_module"))) is None


def test_a_note_is_added_once_and_the_error_goes_on() -> None:
    error = AttributeError("'LossScaleOptimizer' object has no attribute 'dynamic_counter'")
    with pytest.raises(AttributeError) as caught, legacy_hints(), legacy_hints():
        raise error
    assert caught.value is error
    assert len(error.__notes__) == 1


@pytest.mark.parametrize("arguments", [("dynamic",), (False, 128), (True,)])
def test_old_positional_arguments_are_refused(arguments: tuple[Any, ...]) -> None:
    optimizer = precision.LossScaleOptimizer(adam(), *arguments)  # Keras takes them without a word
    with pytest.raises(SessionError, match=r"initial_scale=.*old positional call.*loss_scale_factor=128"):
        check_loss_scale_arguments(optimizer)


def test_todays_optimizers_pass() -> None:
    for optimizer in (adam(), wrapped(), precision.LossScaleOptimizer(adam(), 1024.0), None):
        check_loss_scale_arguments(optimizer)


def test_the_advice_for_a_fixed_scale_holds() -> None:
    """A fixed scale survives `compile` only with auto_scale_loss=False; the hints say so."""

    def compiled(**options: Any) -> Any:
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.dtype_policy = "mixed_float16"
        model.compile(keras.optimizers.Adam(loss_scale_factor=128), "mse", **options)
        return model

    plain = compiled(auto_scale_loss=False)
    plain.train_on_batch(np.ones((4, 2), np.float32), np.zeros((4, 1), np.float32))
    assert plain.optimizer.loss_scale_factor == 128
    assert float(plain.optimizer.scale_loss(1.0)) == 128
    assert compiled().optimizer.inner_optimizer.loss_scale_factor is None
