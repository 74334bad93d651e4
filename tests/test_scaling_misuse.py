"""A train step that uses the loss scale wrongly is told in the first sampled step; a right one is left alone."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import precscope
from precscope.probes.keeper import PrecScopeWarning
from precscope.probes.scaling_misuse import CLIPPED_SCALED, NEVER_SCALED, SCALED_TWICE
from tests.models import data, mlp

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS: dict[str, Any] = {"reference": False, "profile_steps": 0, "device_interval_s": 0.0, "every": 1}
LOSS = keras.losses.SparseCategoricalCrossentropy()


def run(tmp_path: Path, scale: Any, clip: Any = lambda gradients: gradients, eager: bool = False) -> list[str]:
    """Train a few steps of a loop that scales and clips as told; return what the session said of it."""
    model = mlp("mixed_float16")
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    x, y = data(8)

    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = scale(optimizer, LOSS(y, model(x, training=True)))
        gradients = clip(tape.gradient(loss, model.trainable_variables))
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrecScopeWarning)
        with precscope.profile(model, tmp_path / "run", **OPTIONS) as session:
            call = session.instrument(step if eager else tf.function(step))
            for _ in range(4):
                call()
                session.step()
    notices = [notice.message for notice in precscope.open_run(tmp_path / "run").notices]
    return [message for message in notices if message in (NEVER_SCALED, SCALED_TWICE, CLIPPED_SCALED)]


def once(optimizer: Any, loss: Any) -> Any:
    return optimizer.scale_loss(loss)


@pytest.mark.parametrize(
    ("scale", "clip", "told"),
    [
        (once, lambda gradients: gradients, []),
        (lambda optimizer, loss: loss, lambda gradients: gradients, [NEVER_SCALED]),
        (lambda optimizer, loss: once(optimizer, once(optimizer, loss) * 1.0), lambda g: g, [SCALED_TWICE]),
        # Two losses, each scaled once, are right; so is a loss multiplied by the scale itself.
        (lambda optimizer, loss: once(optimizer, loss) + once(optimizer, 0.1 * loss), lambda g: g, []),
        (lambda optimizer, loss: loss * tf.cast(optimizer.dynamic_scale.value, loss.dtype), lambda g: g, []),
        (once, lambda gradients: tf.clip_by_global_norm(gradients, 1.0)[0], [CLIPPED_SCALED]),
        (once, lambda gradients: [tf.clip_by_value(g, -1.0, 1.0) for g in gradients], [CLIPPED_SCALED]),
    ],
    ids=["right", "never", "twice", "two losses", "by hand", "global norm", "value"],
)
def test_custom_loops(tmp_path: Path, scale: Any, clip: Any, told: list[str]) -> None:
    assert run(tmp_path, scale, clip) == told


def test_an_eager_loop_that_never_scales(tmp_path: Path) -> None:
    assert run(tmp_path, lambda optimizer, loss: loss, eager=True) == [NEVER_SCALED]
    assert run(tmp_path / "right", once, eager=True) == []


@pytest.mark.parametrize("policy", ["mixed_float16", "float32"])
def test_fit_is_right_and_stays_silent(tmp_path: Path, policy: str) -> None:
    inner = keras.optimizers.SGD(0.01, clipnorm=1.0)  # clips what was scaled back
    optimizer = keras.optimizers.LossScaleOptimizer(inner) if policy == "mixed_float16" else inner
    model = mlp(policy, optimizer=optimizer)
    x, y = data(32)
    with precscope.profile(model, tmp_path / "run", **OPTIONS):
        model.fit(x, y, batch_size=8, verbose=0)
    assert precscope.open_run(tmp_path / "run").notices == ()


def test_a_layer_that_clips_on_its_way_forward_is_no_misuse(tmp_path: Path) -> None:
    layers = keras.layers
    clipping = layers.Lambda(lambda x: keras.ops.clip(x, -1.0, 1.0), dtype="mixed_float16")
    stack = [clipping, layers.Dense(4, "relu6", dtype="mixed_float16"), layers.Dense(3, dtype="float32")]
    model = keras.Sequential([keras.Input((4,)), *stack])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01)), loss, jit_compile=False)
    x, y = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32), np.arange(16) % 3
    with precscope.profile(model, tmp_path / "run", **OPTIONS):
        model.fit(x, y, batch_size=4, verbose=0)
    assert CLIPPED_SCALED not in [notice.message for notice in precscope.open_run(tmp_path / "run").notices]


def test_what_never_scaling_does(tmp_path: Path) -> None:
    """The harm that the notice tells of is real: the update is smaller by the scale."""
    moved = []
    for scale in (once, lambda optimizer, loss: loss):
        model = mlp("mixed_float16", optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0)))
        model.optimizer.build(model.trainable_variables)
        x, y = data(8)
        before = model.get_weights()[-1].copy()
        with tf.GradientTape() as tape:
            loss = scale(model.optimizer, LOSS(y, model(x, training=False)))
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        moved.append(np.abs(model.get_weights()[-1] - before).max())
    assert moved[0] > 1000 * moved[1]
