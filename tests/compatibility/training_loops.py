"""Configurations: training loops of one's own, with `session.instrument`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from tests.compatibility.configuration import BATCH, POLICIES, Training, configuration
from tests.compatibility.train_steps import GROUP, cross_entropy, examples, perceptron, scaled
from tests.models import tape_step

if TYPE_CHECKING:
    from collections.abc import Callable

layers = keras.layers


def loop(
    step: Callable[..., Any], model: Any, optimizer: Any, of: Callable[[Any], Any] = lambda step: step
) -> Training:
    """Return a training by a loop of one's own; `of` makes the step what the loop calls."""
    x, y = examples()

    def run(session: Any) -> list[float]:
        instrumented = session.instrument(of(step))
        losses = []
        for start in range(0, len(x), BATCH):
            loss = instrumented(tf.constant(x[start : start + BATCH]), tf.constant(y[start : start + BATCH]))
            session.step(loss)
            losses.append(float(loss))
        return losses

    return Training(model, run, optimizer)


@configuration("loop with tf.function", GROUP, policies=POLICIES)
def loop_function() -> Training:
    model, optimizer = perceptron(), scaled(keras.optimizers.Adam(0.01))
    return loop(tape_step(model, optimizer, cross_entropy()), model, optimizer, tf.function)


@configuration("loop with tf.function under XLA", GROUP)
def loop_xla() -> Training:
    model, optimizer = perceptron(), scaled(keras.optimizers.Adam(0.01))
    return loop(
        tape_step(model, optimizer, cross_entropy()), model, optimizer, lambda step: tf.function(step, jit_compile=True)
    )


@configuration("loop with tf.function, reduce_retracing", GROUP)
def loop_relaxed() -> Training:
    model, optimizer = perceptron(), scaled(keras.optimizers.Adam(0.01))
    return loop(
        tape_step(model, optimizer, cross_entropy()),
        model,
        optimizer,
        lambda step: tf.function(step, reduce_retracing=True),
    )


@configuration("loop that runs eagerly", GROUP)
def loop_eager() -> Training:
    model, optimizer = perceptron(), scaled(keras.optimizers.SGD(0.1))
    return loop(tape_step(model, optimizer, cross_entropy()), model, optimizer)


@configuration("loop over a model that builds at its first call", GROUP)
def loop_lazy() -> Training:
    model = keras.Sequential([layers.Dense(8, "tanh"), layers.Dense(3, dtype="float32")])
    optimizer = scaled(keras.optimizers.SGD(0.1))
    return loop(tape_step(model, optimizer, cross_entropy()), model, optimizer, tf.function)


@configuration("loop with clipping by the global norm", GROUP, notices="the loss is not scaled")
def loop_clipped() -> Training:
    model, optimizer = perceptron(), keras.optimizers.Adam(0.01)
    loss_of = cross_entropy()

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, model.trainable_variables), 0.5)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return loop(step, model, optimizer, tf.function)


@configuration("loop over pairs of networks with an optimizer each", GROUP)
def loop_two_optimizers() -> Training:
    model, head = perceptron(6, 8), perceptron(8, 3)
    first, second = scaled(keras.optimizers.Adam(0.01)), scaled(keras.optimizers.SGD(0.1))
    loss_of = cross_entropy()

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            loss = loss_of(y, head(model(x, training=True), training=True))
            scaled_first, scaled_second = first.scale_loss(loss), second.scale_loss(loss)
        first.apply(tape.gradient(scaled_first, model.trainable_variables), model.trainable_variables)
        second.apply(tape.gradient(scaled_second, head.trainable_variables), head.trainable_variables)
        return loss

    training = loop(step, model, [first, second], tf.function)
    training.others = (head,)
    return training


@configuration("loop that calls layer.call itself", GROUP)
def loop_layer_call() -> Training:
    inputs = keras.Input((6,))
    x = layers.Dense(8, "tanh", name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(3, dtype="float32", name="head")(x))
    optimizer = scaled(keras.optimizers.SGD(0.1))
    hidden, head = model.layers[1:3]
    loss_of = cross_entropy()

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(y, head.call(tf.cast(hidden.call(x), tf.float32)))
            scaled_loss = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled_loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return loop(step, model, optimizer, tf.function)
