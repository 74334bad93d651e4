"""Faults written when the rules stood: to see what they are worth on what they were not made for, a second time."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.zoo.case import Case, Data
from tests.zoo.parts import Compute, compiled, linear_target, noisy, random, regressor, standard_rows

__all__ = ["CASES"]

layers = keras.layers


class Standardize(keras.layers.Layer):
    """Subtracts a batch's mean and divides by its deviation: E[x^2] - E[x]^2, as in a textbook."""

    def call(self, x: Any) -> Any:
        mean = tf.reduce_mean(x, 0, keepdims=True)
        variance = tf.reduce_mean(x * x, 0, keepdims=True) - mean * mean
        return (x - mean) / tf.sqrt(tf.maximum(variance, 0.0) + 1e-3)


def standardized() -> Any:
    inputs = keras.Input((16,), name="input")
    x = Standardize(name="standardize")(inputs)
    return regressor(inputs, layers.Dense(16, "tanh", name="hidden")(x))


def values_around(mean: float, deviation: float) -> Data:
    data = standard_rows()
    return Data((data.x * deviation + mean).astype(np.float32), data.y)


def mixture_of_experts() -> Any:
    """The free energy of 8 experts: log of a sum of exponentials, written out."""
    inputs = keras.Input((16,), name="input")
    energy = layers.Dense(8, kernel_initializer=keras.initializers.RandomNormal(stddev=1.5, seed=3), name="energy")(
        inputs
    )
    free = Compute(lambda x: tf.math.log(tf.reduce_sum(tf.exp(x), -1, keepdims=True)), "free_energy")(energy)
    return regressor(inputs, free, 0.02)


class UnitLength(keras.layers.Layer):
    """Divides by the length."""

    def __init__(self, epsilon: float, name: str) -> None:
        super().__init__(name=name)
        self.epsilon = epsilon

    def call(self, x: Any) -> Any:
        return x / tf.sqrt(tf.reduce_sum(tf.square(x), -1, keepdims=True) + self.epsilon)


def two_towers(epsilon: float, deviation: float = 1e-4, learning_rate: float = 1e-2, scale: float | None = None) -> Any:
    """Users and items, their unit vectors multiplied, over a temperature; the embeddings begin small."""
    user, item = keras.Input((), dtype="int32", name="user"), keras.Input((), dtype="int32", name="item")
    units = []
    for number, (name, ids) in enumerate((("user_table", user), ("item_table", item)), start=3):
        small = keras.initializers.RandomNormal(stddev=deviation, seed=number)
        vector = layers.Embedding(30, 8, embeddings_initializer=small, name=name)(ids)
        units.append(UnitLength(epsilon, f"{name}_unit")(vector))
    score = layers.Dot(1, name="cosine")(units)
    score = layers.Rescaling(1 / 0.1, name="temperature")(score)
    outputs = layers.Dense(1, dtype="float32", name="head")(score)
    adam = keras.optimizers.Adam(learning_rate)
    if scale:
        adam = keras.optimizers.LossScaleOptimizer(adam, initial_scale=scale)
    model = keras.Model([user, item], outputs)
    return compiled(model, optimizer=adam, auto_scale_loss=scale is None)


def ratings() -> Data:
    user, item = random(0).integers(0, 30, (2, 200 * 64)).astype(np.int32)
    tastes, traits = random(1).standard_normal((2, 30, 3))
    return Data({"user": user, "item": item}, noisy((tastes[user] * traits[item]).sum(1, keepdims=True), 2))


class GroupNorm(keras.layers.Layer):
    """Norm over the pixels and channels of a group, by sums."""

    def call(self, x: Any) -> Any:
        shape = tf.shape(x)
        groups = tf.reshape(x, (shape[0], -1, 2, x.shape[-1] // 2))
        count = tf.cast(tf.shape(groups)[1] * tf.shape(groups)[3], x.dtype)
        mean = tf.reduce_sum(groups, (1, 3), keepdims=True) / count
        centred = groups - mean
        variance = tf.reduce_sum(centred * centred, (1, 3), keepdims=True) / count
        return tf.reshape(centred / tf.sqrt(variance + 1e-3), shape)


def group_normalized() -> Any:
    inputs = keras.Input((16, 16, 3), name="input")
    x = layers.Conv2D(8, 3, padding="same", name="conv_1")(inputs)
    x = GroupNorm(name="group_norm")(x)
    x = layers.Activation("swish", name="swish")(x)
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="conv_2")(x)
    return regressor(inputs, layers.GlobalAveragePooling2D(name="pool")(x), 0.003)


def bright_images(scale: float = 40.0) -> Data:
    colour = random(1).standard_normal((512, 3))
    pattern = random(3).standard_normal((16, 16, 3))
    x = random(0).standard_normal((512, 16, 16, 3)) + colour[:, None, None] * pattern
    return Data((scale * x).astype(np.float32), noisy(colour @ np.array([[1.0], [-1.0], [0.5]]), 2))


class ReconstructionError(keras.layers.Layer):
    """The mean squared error over all points of a long signal."""

    def call(self, signal: Any, decoded: Any) -> Any:
        return tf.reduce_sum(tf.square(signal - decoded), -1, keepdims=True) / signal.shape[-1]


def autoencoder() -> Any:
    """The error is a layer, since it is what an anomaly detector puts out."""
    signal = keras.Input((4096,), name="signal")
    x = layers.Rescaling(0.1, name="smaller")(signal)
    code = layers.Dense(4, name="encode")(x)
    decoded = layers.Dense(4096, name="decode")(code)
    decoded = layers.Rescaling(10.0, name="larger")(decoded)
    error = ReconstructionError(name="error")(signal, decoded)
    return compiled(keras.Model(signal, error), lambda _, error: tf.reduce_mean(error), keras.optimizers.Adam(1e-2))


def long_signals() -> Data:
    waves = np.sin(np.arange(4096)[None] * 2 * np.pi / 4096 * np.arange(1, 5)[:, None])
    x = random(0).standard_normal((256, 4)) @ waves * 7 + 5 * random(1).standard_normal((256, 4096))
    return Data(x.astype(np.float32), np.zeros((256, 1), np.float32))


def focal_loss(y: Any, p: Any) -> Any:
    """Focal loss of probabilities, as on many a blog."""
    right = tf.where(y > 0.5, p, 1 - p)
    return -tf.reduce_mean(tf.square(1 - right) * tf.math.log(right + 1e-9), -1)


def rare_event(dtype: str | None) -> Any:
    inputs = keras.Input((16,), name="input")
    x = layers.Dense(32, "relu", name="hidden")(inputs)
    sure = keras.initializers.RandomNormal(stddev=4.0, seed=3)
    outputs = layers.Dense(1, "sigmoid", kernel_initializer=sure, dtype=dtype, name="probability")(x)
    return compiled(keras.Model(inputs, outputs), focal_loss, keras.optimizers.Adam(3e-3))


def rare_events() -> Data:
    x = (1.5 * random(0).standard_normal((2048, 16))).astype(np.float32)
    y = (x @ random(1).standard_normal((16, 1)) > 4).astype(np.float32)
    wrong = random(2).uniform(size=len(y)) < 0.1
    y[wrong] = 1 - y[wrong]
    return Data(x, y)


class Critic(keras.Model):
    """A critic with a gradient penalty: the length of the gradient of its score is drawn to 1."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        small = keras.initializers.RandomNormal(stddev=scale, seed=3)
        self.first = layers.Dense(16, "softplus", name="first")
        self.second = layers.Dense(1, kernel_initializer=small, name="second")
        self.penalty = Compute(
            lambda g: tf.square(tf.sqrt(tf.reduce_sum(tf.square(g), -1, keepdims=True) + 1e-10) - 1), "penalty"
        )
        self.head = layers.Dense(1, dtype="float32", name="head")

    def call(self, x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            score = self.second(self.first(x))
        self.add_loss(0.1 * tf.reduce_mean(tf.cast(self.penalty(tape.gradient(score, x)), tf.float32)))
        return self.head(score)


def critic() -> Any:
    return compiled(Critic(3e-5), optimizer=keras.optimizers.Adam(3e-3))


def doubly_masked_attention(constant: float = -65504) -> Any:
    """The position bias holds the mask already, and the attention adds it once more."""
    tokens, present = keras.Input((8, 16), name="tokens"), keras.Input((8,), name="present")
    query, key, value = (layers.Dense(16, name=name)(tokens) for name in ("query", "key", "value"))
    scores = layers.Dot(2, name="scores")([query, key])
    distance = -0.1 * np.abs(np.arange(8)[:, None] - np.arange(8)).astype(np.float32)

    def bias(present: Any) -> Any:
        lowest = tf.cast(constant, present.dtype)
        return tf.cast(distance, present.dtype) + (1 - present[:, None]) * lowest

    def mask(scores: Any, bias: Any, present: Any) -> Any:
        return scores * 0.25 + bias + (1 - present[:, None]) * tf.cast(constant, scores.dtype)

    masked = Compute(mask, "mask")(scores, Compute(bias, "position_bias")(present), present)
    weights = layers.Softmax(name="softmax")(masked)
    mixed = layers.Dot((2, 1), name="mix")([weights, value])
    return regressor([tokens, present], layers.GlobalAveragePooling1D(name="pool")(mixed))


def batches_with_empty_row() -> Data:
    tokens = random(0).standard_normal((200 * 64, 8, 16)).astype(np.float32)
    length = random(1).integers(1, 9, 200 * 64)
    length[7::64] = 0
    present = (np.arange(8) < length[:, None]).astype(np.float32)
    mean = (tokens * present[:, :, None]).sum(1) / np.maximum(length, 1)[:, None]
    return Data({"tokens": tokens, "present": present}, noisy(mean @ random(2).standard_normal((16, 1)), 3))


class ChannelScale(keras.layers.Layer):
    """A learned factor for each channel, as behind the branches of a deep residual network."""

    def __init__(self, initial: float, name: str) -> None:
        super().__init__(name=name)
        self.initial = initial

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(
            shape=shape[-1:], initializer=keras.initializers.Constant(self.initial), name="scale"
        )

    def call(self, x: Any) -> Any:
        return x * self.scale


def scaled_branches() -> Any:
    inputs = keras.Input((16,), name="input")
    x = layers.Dense(16, "elu", name="stem")(inputs)
    for block, scale in enumerate((300.0, 40.0), start=1):
        branch = layers.Dense(16, "elu", name=f"branch_{block}")(x)
        x = layers.Add(name=f"sum_{block}")([x, ChannelScale(scale, f"scale_{block}")(branch)])
    return regressor(inputs, layers.LayerNormalization(name="norm")(x), 0.003)


def image_counter() -> Any:
    """Counts by a density map: the sum over all pixels is the number; hundreds a pixel."""
    inputs = keras.Input((64, 64, 1), name="input")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")(inputs)
    density = layers.Conv2D(2, 1, activation="softplus", name="density")(x)
    total = Compute(lambda x: tf.reduce_sum(x, (1, 2)), "sum_pool")(density)
    logged = Compute(lambda x: tf.math.log(x), "log")(total)
    return regressor(inputs, logged, 0.01)


def crowded_images() -> Data:
    share = random(0).uniform(0.2, 1, (256, 1, 1, 1))
    x = 900 * (random(1).uniform(size=(256, 64, 64, 1)) < share)
    return Data(x.astype(np.float32), noisy(np.log(share[:, :, 0, 0]), 2))


def polynomial() -> Any:
    inputs = keras.Input((8,), name="input")
    x = Compute(lambda x: tf.concat([x, x**2, x**3, x**4], -1), "powers")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    return regressor(inputs, layers.Dense(16, "tanh", name="hidden")(x), 0.003)


def values_up_to(limit: float) -> Data:
    x = random(0).uniform(-limit, limit, (512, 8)).astype(np.float32)
    return Data(x, noisy(linear_target((x / limit) ** 3, 1), 2))


def barometer(mean: float, deviation: float) -> Any:
    """Keras' own normalization of measurements, in the model, with the mean and variance of the data."""
    inputs = keras.Input((16,), name="input")
    x = layers.Normalization(mean=mean, variance=deviation**2, name="normalization")(inputs)
    return regressor(inputs, layers.Dense(16, "tanh", name="hidden")(x))


def teacher_and_student(epsilon: float) -> Any:
    """The divergence of a student's distribution from a sure teacher's, as a layer."""
    inputs, logits = keras.Input((16,), name="input"), keras.Input((10,), name="teacher_logits")
    teacher = layers.Softmax(name="teacher")(logits)
    student = layers.Dense(10, "softmax", name="student")(layers.Dense(32, "relu", name="hidden")(inputs))

    def divergence(p: Any, q: Any) -> Any:
        return tf.reduce_sum(p * (tf.math.log(p + epsilon) - tf.math.log(q + epsilon)), -1, keepdims=True)

    outputs = Compute(divergence, "divergence")(teacher, student)
    return compiled(keras.Model([inputs, logits], outputs), lambda _, kl: tf.reduce_mean(kl))


def teachers() -> Data:
    x = random(0).standard_normal((200 * 64, 16))
    logits = 5 * x @ random(1).standard_normal((16, 10)) + 5 * random(2).standard_normal((200 * 64, 10))
    data = {"input": x.astype(np.float32), "teacher_logits": logits.astype(np.float32)}
    return Data(data, np.zeros((200 * 64, 1), np.float32))


def exponential_gate() -> Any:
    """A gate of an exponential, as in newer recurrent networks, times a sigmoid that closes it; then normalized."""
    inputs = keras.Input((16,), name="input")
    wide = keras.initializers.RandomNormal(stddev=1.3, seed=3)
    forget, value = layers.Dense(8, name="forget")(inputs), layers.Dense(8, "tanh", name="value")(inputs)
    opening = layers.Dense(8, kernel_initializer=wide, name="opening")(inputs)
    gate = Compute(lambda f, i: tf.sigmoid(f) * tf.exp(i), "gate")(forget, opening)
    weights = Compute(lambda g: g / tf.reduce_sum(g, -1, keepdims=True), "share")(gate)
    return regressor(inputs, layers.Multiply(name="gated")([weights, value]))


def fourier_features(highest: float) -> Any:
    """A coordinate network: random frequencies times a coordinate, sines and cosines of the product."""
    coordinates = keras.Input((2,), name="coordinates")
    frequencies = (highest * random(5).uniform(-1, 1, (2, 32))).astype(np.float32)

    def waves(x: Any) -> Any:
        angles = 2 * math.pi * tf.matmul(x, tf.cast(frequencies, x.dtype))
        return tf.concat([tf.sin(angles), tf.cos(angles)], -1)

    x = Compute(waves, "fourier")(coordinates)
    return regressor(coordinates, layers.Dense(32, "relu", name="hidden")(x), 0.003)


def fine_picture(highest: float) -> Data:
    x = random(0).uniform(0, 1, (512, 2)).astype(np.float32)
    frequencies = (highest * random(5).uniform(-1, 1, (2, 32))).astype(np.float32)
    angles = 2 * np.pi * (x @ frequencies)
    return Data(x, noisy(np.sin(angles[:, :4]).sum(1, keepdims=True), 1))


def labels_as_numbers(classes: int) -> Any:
    """Labels come as a column of floats beside the features; the loss layer makes whole numbers of them."""
    inputs, label = keras.Input((16,), name="input"), keras.Input((1,), name="label")
    logits = layers.Dense(classes, dtype="float32", name="logits")(layers.Dense(16, "tanh", name="hidden")(inputs))
    wanted = Compute(lambda label: tf.one_hot(tf.cast(label[:, 0], tf.int32), classes, dtype=tf.float32), "wanted")

    def cross_entropy(_: Any, both: Any) -> Any:
        return tf.nn.softmax_cross_entropy_with_logits(both[:, 0], both[:, 1])

    both = layers.Lambda(lambda p: tf.stack(p, 1), dtype="float32", name="both")([wanted(label), logits])
    return compiled(keras.Model([inputs, label], both), cross_entropy, keras.optimizers.Adam(0.02))


def many_classes(classes: int) -> Data:
    label = classes - 1 - random(0).integers(0, 20, (512, 1))
    centres = random(1).standard_normal((20, 16))
    x = centres[classes - 1 - label[:, 0]] + 1.0 * random(2).standard_normal((512, 16))
    data = {"input": x.astype(np.float32), "label": label.astype(np.float32)}
    return Data(data, np.zeros((512, classes), np.float32))


def elapsed_time() -> Any:
    now, last = keras.Input((4,), name="now"), keras.Input((4,), name="last")
    elapsed = layers.Subtract(name="elapsed")([now, last])
    return regressor([now, last], layers.Dense(16, "tanh", name="hidden")(elapsed), 0.01)


def times(until: float) -> Data:
    last = random(0).uniform(0, until, (512, 4))
    elapsed = random(1).exponential(1.0, (512, 4))
    pair = {"now": (last + elapsed).astype(np.float32), "last": last.astype(np.float32)}
    return Data(pair, noisy(np.exp(-elapsed).sum(1, keepdims=True), 2))


def summed_loss(scale: float) -> Any:
    """The loss is the sum over 256 outputs and not their mean, under a fixed loss scale."""
    inputs = keras.Input((16,), name="input")
    x = layers.Dense(32, "relu", name="hidden_1")(inputs)
    x = layers.Dense(32, "relu", name="hidden_2")(x)
    outputs = layers.Dense(256, dtype="float32", name="head")(x)
    optimizer = keras.optimizers.Adam(3e-3, loss_scale_factor=scale)

    def sum_of_squares(y: Any, p: Any) -> Any:
        return tf.reduce_sum(tf.square(y - p), -1)

    return compiled(keras.Model(inputs, outputs), sum_of_squares, optimizer, auto_scale_loss=False)


def many_outputs() -> Data:
    x = random(0).standard_normal((512, 16)).astype(np.float32)
    y = 10 * np.tanh(x @ random(1).standard_normal((16, 256)) / 4) + random(2).standard_normal((512, 256))
    return Data(x, y.astype(np.float32))


def long_memory() -> Any:
    """A leaky sum over 600 steps by cumsum, its last value over the number of steps."""
    events = keras.Input((600, 2), name="events")
    count = layers.Lambda(lambda x: keras.ops.cumsum(x, 1), name="running_total")(events)
    share = layers.Lambda(lambda x: x[:, -1] / 600, name="mean_so_far")(count)
    return regressor(events, share, 0.02)


def event_streams() -> Data:
    share = random(0).uniform(0.2, 1, (512, 1, 2))
    x = (random(1).uniform(size=(512, 600, 2)) < share).astype(np.float32)
    return Data(x, noisy(share[:, 0] @ np.array([[1.0], [-0.5]]), 2))


CASES = (
    Case(
        "textbook_variance",
        "E[x^2] - E[x]^2 of values around 100 that deviate by 0.5: both terms are rounded to steps of 8. Silent.",
        standardized,
        partial(values_around, 100.0, 0.5),
        truth=frozenset({"standardize"}),
    ),
    Case(
        "textbook_variance_bfloat16",
        "The same in bfloat16, of values around 30 that deviate by 1: terms of 900 are rounded to steps of 4. Silent.",
        standardized,
        partial(values_around, 30.0, 1.0),
        truth=frozenset({"standardize"}),
        policy="mixed_bfloat16",
    ),
    Case(
        "log_sum_exp",
        "The logarithm of a sum of exponentials, written out: exp of 12 is infinite, although the result is 12.",
        mixture_of_experts,
        standard_rows,
        truth=frozenset({"free_energy"}),
        goes_nonfinite=True,
        source_layer="free_energy",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "small_embeddings",
        "The squares of embeddings of 1e-4 vanish in float16, and so does 1e-12: 1e-4 / 0 is infinite.",
        partial(two_towers, 1e-12),
        ratings,
        truth=frozenset({"user_table_unit", "item_table_unit"}),
        goes_nonfinite=True,
        source_layer="user_table_unit",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "unnoticed_overflow",
        "One row of an embedding's gradient overflows at 2^15. Keras looks at one gradient of several of the same row, "
        "so that the step is not skipped and the row becomes NaN.",
        partial(two_towers, 1e-4, 0.1, 3e-3),
        ratings,
        action="lower_loss_scale",
        suspects=frozenset({"user_table", "item_table", "user_table_unit", "item_table_unit", "cosine"}),
        repair={"make": partial(two_towers, 1e-4, 0.1, 3e-3, 2.0**8)},
        goes_nonfinite=True,
        source_layer="item_table_unit",
        direction="backward",
        first_bad_step=0,
    ),
    Case(
        "group_norm_by_sums",
        "The sum of a group's squares is infinite in float16, although their mean is 2,000: "
        "the output is zero. Silent.",
        group_normalized,
        bright_images,
        truth=frozenset({"group_norm"}),
    ),
    Case(
        "error_of_long_signal",
        "The sum of squared errors over 4,096 points exceeds 65,504 before it is divided by their number.",
        autoencoder,
        long_signals,
        truth=frozenset({"error"}),
        goes_nonfinite=True,
        source_layer="error",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "focal_loss",
        "A float16 sigmoid that rounds to 0 or 1 leaves log(1e-9), which has a gradient of 1e9.",
        partial(rare_event, None),
        rare_events,
        truth=frozenset({"probability"}),
        goes_nonfinite=True,
        source_layer="probability",
        direction="backward",
        first_bad_step=0,
    ),
    Case(
        "gradient_penalty",
        "The squares of small gradients vanish, and so does 1e-10: the root of 0 has an infinite derivative.",
        critic,
        standard_rows,
        truth=frozenset({"penalty"}),
        goes_nonfinite=True,
        source_layer="penalty",
        direction="backward",
        first_bad_step=0,
    ),
    Case(
        "two_masks",
        "A mask of float16's lowest number, added twice, is minus infinity, and a row of nothing else has no softmax.",
        doubly_masked_attention,
        batches_with_empty_row,
        truth=frozenset({"mask", "softmax"}),
        also_right=frozenset({"change_constant"}),
        repair={"make": partial(doubly_masked_attention, -3e4)},
        goes_nonfinite=True,
        source_layer="mask",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "branch_scale",
        "Learned factors of 300 and 40 on two branches: what comes out exceeds 65,504.",
        scaled_branches,
        partial(values_around, 0.0, 4.0),
        truth=frozenset({"scale_2", "sum_2"}),
        goes_nonfinite=True,
        source_layer="scale_2",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "sum_pooling",
        "The sum over the pixels of a density map exceeds 65,504; the logarithm casts it back to float16.",
        image_counter,
        crowded_images,
        truth=frozenset({"sum_pool", "log"}),
        batch=32,
        goes_nonfinite=True,
        source_layer="sum_pool",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "polynomial_features",
        "The fourth power of 20 is 160,000, infinite in float16; the BatchNormalization casts it back.",
        polynomial,
        partial(values_up_to, 20.0),
        truth=frozenset({"powers", "norm"}),
        goes_nonfinite=True,
        source_layer="powers",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "normalization_layer",
        "Keras' Normalization casts what it reads first: measurements around 1,013 that deviate by 0.2 are rounded to "
        "steps of 0.5. Silent.",
        partial(barometer, 1013.0, 0.2),
        partial(values_around, 1013.0, 0.2),
        truth=frozenset({"normalization"}),
        also_right=frozenset({"scale_input"}),
        repair={"make": partial(barometer, 0.0, 0.2), "data": partial(values_around, 0.0, 0.2)},
    ),
    Case(
        "kl_divergence",
        "A probability of 0 with an epsilon of 1e-9, which is 0 in float16: 0 * log(0) is NaN.",
        partial(teacher_and_student, 1e-9),
        teachers,
        truth=frozenset({"divergence"}),
        extras={"student": "its gradients overflow in three of the steps"},
        goes_nonfinite=True,
        source_layer="divergence",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "exponential_gate",
        "exp(12) is infinite in float16, and so is the gate; its share, Inf / Inf, is NaN.",
        exponential_gate,
        partial(values_around, 0.0, 2.0),
        truth=frozenset({"gate", "share"}),
        goes_nonfinite=True,
        source_layer="gate",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "fourier_features",
        "Angles of hundreds of radians are rounded to steps of a half in float16. Silent.",
        partial(fourier_features, 200.0),
        partial(fine_picture, 200.0),
        truth=frozenset({"fourier"}),
    ),
    Case(
        "labels_as_numbers",
        "Labels of up to 4,999 are cast to float16 on their way into the loss, so that neighbours collide. Silent.",
        partial(labels_as_numbers, 5000),
        partial(many_classes, 5000),
        truth=frozenset({"wanted"}),
    ),
    Case(
        "elapsed_time",
        "The difference of two times of up to 5,000 is a small number; both are rounded to steps of 2 or 4. Silent.",
        elapsed_time,
        partial(times, 5000.0),
        truth=frozenset({"elapsed"}),
    ),
    Case(
        "elapsed_time_bfloat16",
        "The same with times of up to 500, which bfloat16 rounds to steps of 2. Silent.",
        elapsed_time,
        partial(times, 500.0),
        truth=frozenset({"elapsed"}),
        policy="mixed_bfloat16",
    ),
    Case(
        "summed_loss",
        "The loss is a sum, so its gradients are 256 times as large, and a fixed scale of 2^15 is too high for them.",
        partial(summed_loss, 2.0**15),
        many_outputs,
        action="lower_loss_scale",
        repair={"make": partial(summed_loss, 2.0**4)},
        suspects=frozenset({"hidden_1", "hidden_2"}),
        goes_nonfinite=True,
        source_layer="hidden_2",
        direction="backward",
        first_bad_step=0,
    ),
    Case(
        "running_total_bfloat16",
        "A running sum of ones stands still at 256 in bfloat16. Silent.",
        long_memory,
        event_streams,
        truth=frozenset({"running_total"}),
        policy="mixed_bfloat16",
    ),
)
