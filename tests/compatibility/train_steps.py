"""Configurations: train steps and training loops that people write themselves."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tests.compatibility.configuration import (
    BATCH,
    POLICIES,
    STEPS,
    Training,
    compiled,
    configuration,
    fit,
    integers,
    noise,
)

GROUP = "Train steps and loops of one's own"
layers, ops = keras.layers, keras.ops


def perceptron(features: int = 6, outputs: int = 3) -> Any:
    """Return a small model with a float32 head, its loss taking logits."""
    return keras.Sequential(
        [
            keras.Input((features,)),
            layers.Dense(8, activation="tanh", name="hidden"),
            layers.Dense(outputs, dtype="float32", name="head"),
        ]
    )


def examples(steps: int = STEPS) -> tuple[Any, Any]:
    return noise(BATCH * steps, 6), integers(3, BATCH * steps)


def cross_entropy() -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def scaled(optimizer: Any) -> Any:
    """Return the optimizer, wrapped as Keras' compile would where the policy asks for it."""
    needs = keras.config.dtype_policy().name == "mixed_float16"
    return keras.optimizers.LossScaleOptimizer(optimizer) if needs else optimizer


class OwnStep(keras.Model):
    """A model with a train step of its own; subclasses override parts."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = layers.Dense(8, activation="tanh")
        self.head = layers.Dense(3, dtype="float32")

    def call(self, x: Any, training: bool = False) -> Any:
        return self.head(self.hidden(x))

    def gradients(self, x: Any, y: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
            scaled_loss = self.optimizer.scale_loss(loss)
        return loss, tape.gradient(scaled_loss, self.trainable_variables)


class LogsOwnStep(OwnStep):
    def train_step(self, data: Any) -> Any:
        x, y = data
        loss, gradients = self.gradients(x, y)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


@configuration("custom train_step", GROUP, policies=POLICIES, quick=True)
def custom_train_step() -> Training:
    return fit(compiled(LogsOwnStep(), cross_entropy()), *examples())


class LogsNoLoss(LogsOwnStep):
    def train_step(self, data: Any) -> Any:
        super().train_step(data)
        return {"steps": tf.constant(1)}


@configuration("train_step whose logs hold no loss", GROUP)
def logs_no_loss() -> Training:
    return fit(compiled(LogsNoLoss(), cross_entropy()), *examples())


class TwoViews(OwnStep):
    """Consistency training: the layers are called twice a step, the second time on noisy input."""

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            clean = self(x, training=True)
            noisy = self(x * 1.5, training=True)
            loss = self.compute_loss(x, y, clean) + ops.mean(ops.square(clean - noisy))
            scaled_loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled_loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


@configuration("train_step that calls its layers twice", GROUP, policies=POLICIES)
def two_views() -> Training:
    return fit(compiled(TwoViews(), cross_entropy()), *examples())


class Adversarial(OwnStep):
    """A gradient by the input, and a step on what that gave (FGSM): two tapes, one in the other."""

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            with tf.GradientTape() as inner:
                inner.watch(x)
                first = self.compute_loss(x, y, self(x, training=True))
            attack = x + 0.01 * tf.sign(inner.gradient(first, x))
            loss = first + self.compute_loss(x, y, self(attack, training=True))
            scaled_loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled_loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


@configuration("adversarial training: a tape within a tape", GROUP)
def adversarial() -> Training:
    return fit(compiled(Adversarial(), cross_entropy()), *examples())


class GradientPenalty(OwnStep):
    """Second derivatives: the norm of the gradient by the input is part of the loss."""

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            with tf.GradientTape() as inner:
                inner.watch(x)
                outputs = self(x, training=True)
            slope = inner.gradient(outputs, x)
            loss = self.compute_loss(x, y, outputs) + 0.1 * ops.mean(ops.square(slope))
            scaled_loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled_loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


@configuration("gradient penalty: second derivatives", GROUP, policies=POLICIES, quick=True)
def gradient_penalty() -> Training:
    return fit(compiled(GradientPenalty(), cross_entropy()), *examples())


class Gan(keras.Model):
    """Two networks, two optimizers; `compile` is given both and Keras' own optimizer is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = keras.Sequential(
            [keras.Input((4,)), layers.Dense(8, "relu"), layers.Dense(6, dtype="float32")]
        )
        self.discriminator = keras.Sequential(
            [keras.Input((6,)), layers.Dense(8), layers.LeakyReLU(), layers.Dense(1, dtype="float32")]
        )

    def compile(self, generator: Any, discriminator: Any, **keywords: Any) -> None:
        super().compile(**keywords)
        self.generator_optimizer, self.discriminator_optimizer = generator, discriminator

    def train_step(self, data: Any) -> Any:
        latent = ops.concatenate([data[:, :2], ops.square(data[:, 2:4])], 1)
        discriminator_loss = self.discriminator_step(data, latent)
        variables, optimizer = self.generator.trainable_variables, self.generator_optimizer
        with tf.GradientTape() as tape:
            judged = self.discriminator(self.generator(latent, training=True), training=True)
            loss = ops.mean(ops.softplus(-judged))
            scaled_loss = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled_loss, variables)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return {"loss": loss + discriminator_loss}

    def discriminator_step(self, real: Any, latent: Any) -> Any:
        variables, optimizer = self.discriminator.trainable_variables, self.discriminator_optimizer
        with tf.GradientTape() as tape:
            fake = self.discriminator(self.generator(latent, training=True), training=True)
            loss = ops.mean(ops.softplus(fake)) + ops.mean(ops.softplus(-self.discriminator(real, training=True)))
            scaled_loss = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled_loss, variables)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss


@configuration("GAN with two optimizers, Keras' own unused", GROUP, policies=POLICIES)
def gan() -> Training:
    model = Gan()
    model.compile(scaled(keras.optimizers.Adam(1e-3)), scaled(keras.optimizers.SGD(0.01)), jit_compile=False)
    return fit(model, noise(BATCH * STEPS, 6))


class GanWithItsOwn(Gan):
    """The discriminator is trained by `model.optimizer`, the generator by a second one."""

    def compile(self, generator: Any, discriminator: Any, **keywords: Any) -> None:
        super().compile(generator, None, optimizer=discriminator, **keywords)
        self.discriminator_optimizer = self.optimizer


@configuration("GAN whose model.optimizer is one of two", GROUP)
def gan_with_its_own() -> Training:
    model = GanWithItsOwn()
    model.compile(scaled(keras.optimizers.Adam(1e-3)), keras.optimizers.SGD(0.01), jit_compile=False)
    return fit(model, noise(BATCH * STEPS, 6))


class Accumulating(OwnStep):
    """Gradients added up by hand over two batches."""

    def build(self, shape: Any) -> None:
        self.hidden.build(shape)
        self.head.build((None, 8))
        self.sums = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in self.trainable_variables]
        self.calls = tf.Variable(0, trainable=False)
        self.built = True

    def train_step(self, data: Any) -> Any:
        loss, gradients = self.gradients(*data)
        for total, gradient in zip(self.sums, gradients, strict=True):
            total.assign_add(tf.cast(gradient, tf.float32))
        self.calls.assign_add(1)
        tf.cond(self.calls % 2 == 0, self.apply_sums, lambda: tf.constant(0))
        return {"loss": loss}

    def apply_sums(self) -> Any:
        self.optimizer.apply_gradients(zip([s / 2 for s in self.sums], self.trainable_variables, strict=True))
        for total in self.sums:
            total.assign(tf.zeros_like(total))
        return tf.constant(1)


@configuration(
    "gradients accumulated by hand, applied in a tf.cond",
    GROUP,
    policies=("float32", "mixed_bfloat16"),
    weights_unseen="the optimizer is called in a branch of the step",
)
def accumulating() -> Training:
    model = Accumulating()
    model.build((None, 6))
    compiled(model, cross_entropy())
    model.optimizer.build(model.trainable_variables)
    return fit(model, *examples())


@configuration("gradient_accumulation_steps of the optimizer", GROUP, policies=POLICIES)
def accumulation_steps() -> Training:
    return fit(
        compiled(perceptron(), cross_entropy(), keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)), *examples()
    )


class StepInFunction(LogsOwnStep):
    """The train step itself is a tf.function."""

    @tf.function
    def train_step(self, data: Any) -> Any:
        x, y = data
        loss, gradients = self.gradients(x, y)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


@configuration("train_step decorated by tf.function", GROUP)
def step_in_function() -> Training:
    return fit(compiled(StepInFunction(), cross_entropy()), *examples())


@configuration("run_eagerly", GROUP)
def run_eagerly() -> Training:
    return fit(compiled(LogsOwnStep(), cross_entropy(), run_eagerly=True), *examples())


@configuration("steps_per_execution", GROUP)
def steps_per_execution() -> Training:
    return fit(compiled(perceptron(), cross_entropy(), steps_per_execution=2), *examples(6))


@configuration("train_on_batch", GROUP)
def train_on_batch() -> Training:
    model = compiled(perceptron(), cross_entropy())
    x, y = examples()

    def run(session: Any) -> list[float]:
        starts = range(0, len(x), BATCH)
        return [float(model.train_on_batch(x[s : s + BATCH], y[s : s + BATCH])) for s in starts]

    return Training(model, run)


@configuration("XLA", GROUP, policies=POLICIES)
def under_xla() -> Training:
    return fit(compiled(perceptron(), cross_entropy(), jit_compile=True), *examples())
