"""Healthy controls written when the rules stood: look-alikes of faults, and architectures of other kinds."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.zoo import third
from tests.zoo.case import Case, Data
from tests.zoo.parts import Compute, compiled, linear_target, many_rows, noisy, random, regressor

__all__ = ["CASES"]

layers = keras.layers


def unet() -> Any:
    """Down, up, and the way past; a float32 head that says for each pixel whether it is inside."""
    inputs = keras.Input((16, 16, 2), name="input")
    ways, x = [], inputs
    for depth, filters in enumerate((8, 16)):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"down_{depth}")(x)
        ways.append(x)
        x = layers.MaxPooling2D(name=f"pool_{depth}")(x)
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="bottom")(x)
    for depth, filters in ((1, 16), (0, 8)):
        x = layers.UpSampling2D(name=f"up_{depth}")(x)
        x = layers.Concatenate(name=f"join_{depth}")([x, ways[depth]])
        x = layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"conv_{depth}")(x)
    outputs = layers.Conv2D(1, 1, activation="sigmoid", dtype="float32", name="head")(x)
    return compiled(keras.Model(inputs, outputs), "binary_crossentropy", keras.optimizers.Adam(0.003))


def discs() -> Data:
    centre = random(0).uniform(4, 12, (200 * 32, 1, 1, 2))
    grid = np.stack(np.meshgrid(np.arange(16), np.arange(16), indexing="ij"), -1)[None]
    inside = (np.square(grid - centre).sum(-1, keepdims=True) < 16).astype(np.float32)
    x = np.concatenate([inside, -inside], -1) + random(1).standard_normal((200 * 32, 16, 16, 2))
    return Data(x.astype(np.float32), inside)


def mlp_mixer() -> Any:
    inputs = keras.Input((16, 16, 3), name="input")
    x = layers.Conv2D(16, 4, strides=4, name="patches")(inputs)
    x = layers.Reshape((16, 16), name="tokens")(x)
    for block in (1, 2):
        y = layers.Permute((2, 1), name=f"turn_{block}")(layers.LayerNormalization(name=f"norm_t{block}")(x))
        y = layers.Dense(16, name=f"mix_t{block}")(layers.Dense(32, "gelu", name=f"widen_t{block}")(y))
        x = layers.Add(name=f"add_t{block}")([x, layers.Permute((2, 1), name=f"back_{block}")(y)])
        y = layers.LayerNormalization(name=f"norm_c{block}")(x)
        y = layers.Dense(16, name=f"mix_c{block}")(layers.Dense(32, "gelu", name=f"widen_c{block}")(y))
        x = layers.Add(name=f"add_c{block}")([x, y])
    x = layers.GlobalAveragePooling1D(name="pool")(layers.LayerNormalization(name="norm")(x))
    return regressor(inputs, x, 0.002)


def coloured_images(rows: int = 200 * 64, scale: float = 1.0) -> Data:
    colour = random(1).standard_normal((rows, 3))
    x = random(0).standard_normal((rows, 16, 16, 3), dtype=np.float32)
    x += colour[:, None, None].astype(np.float32)
    return Data(x * np.float32(scale), noisy(colour @ np.array([[1.0], [-1.0], [0.5]]), 2, noise=1.0))


def mobile_net() -> Any:
    """Depthwise and pointwise convolutions with BatchNorm and ReLU6, inverted residuals."""
    inputs = keras.Input((16, 16, 3), name="input")
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.ReLU(6.0, name="stem_relu")(layers.BatchNormalization(name="stem_norm")(x))
    for block in (1, 2):
        y = layers.Conv2D(24, 1, use_bias=False, name=f"expand_{block}")(x)
        y = layers.ReLU(6.0, name=f"relu_a{block}")(layers.BatchNormalization(name=f"norm_a{block}")(y))
        y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"depthwise_{block}")(y)
        y = layers.ReLU(6.0, name=f"relu_b{block}")(layers.BatchNormalization(name=f"norm_b{block}")(y))
        y = layers.Conv2D(8, 1, use_bias=False, name=f"narrow_{block}")(y)
        x = layers.Add(name=f"add_{block}")([x, layers.BatchNormalization(name=f"norm_c{block}")(y)])
    return regressor(inputs, layers.GlobalAveragePooling2D(name="pool")(x), 0.002)


def dropout_everywhere() -> Any:
    inputs = keras.Input((16,), name="input")
    x = layers.GaussianNoise(0.1, seed=9, name="noise")(inputs)
    for number in (1, 2, 3):
        x = layers.Dense(64, "relu", name=f"hidden_{number}")(x)
        x = layers.Dropout(0.5, seed=number, name=f"dropout_{number}")(x)
    return regressor(inputs, x, 0.002)


def library_log_sum_exp() -> Any:
    """TensorFlow's log-sum-exp subtracts the maximum first."""
    inputs = keras.Input((16,), name="input")
    wide = keras.initializers.RandomNormal(stddev=1.5, seed=3)
    energy = layers.Dense(8, kernel_initializer=wide, name="energy")(inputs)
    free = Compute(lambda x: tf.reduce_logsumexp(x, -1, keepdims=True), "free_energy")(energy)
    return regressor(inputs, free, 0.02)


def keras_group_norm() -> Any:
    inputs = keras.Input((16, 16, 3), name="input")
    x = layers.Conv2D(8, 3, padding="same", name="conv_1")(inputs)
    x = layers.GroupNormalization(2, name="group_norm")(x)
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="swish", name="conv_2")(x)
    return regressor(inputs, layers.GlobalAveragePooling2D(name="pool")(x), 0.003)


def huber_layer() -> Any:
    """The square of an error of 1,000 is infinite, where the absolute value is taken instead."""
    inputs, wanted = keras.Input((16,), name="input"), keras.Input((1,), name="wanted")
    x = layers.Dense(32, "relu", name="hidden")(inputs)
    guess = layers.Dense(1, name="guess")(x)

    def huber(y: Any, p: Any) -> Any:
        error = y - p
        return tf.where(tf.abs(error) < 1, 0.5 * error * error, tf.abs(error) - 0.5)

    loss = Compute(huber, "huber")(wanted, guess)
    return compiled(keras.Model([inputs, wanted], loss), lambda _, loss: tf.reduce_mean(loss))


def with_outliers() -> Data:
    data = many_rows()
    wanted = data.y.copy()
    wanted[::50] *= 500
    return Data({"input": data.x, "wanted": wanted}, data.y)


def averaged_maps() -> Any:
    """The average over 4,096 pixels of some 20 is what is put out; their sum would not fit."""
    inputs = keras.Input((64, 64, 1), name="input")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")(inputs)
    return regressor(inputs, layers.GlobalAveragePooling2D(name="pool")(x), 0.01)


def large_maps() -> Data:
    share = random(0).uniform(0.2, 1, (512, 1, 1, 1))
    x = 30 * (random(1).uniform(size=(512, 64, 64, 1)) < share)
    return Data(x.astype(np.float32), noisy(share[:, :, 0, 0], 2, noise=1.0))


def bilstm() -> Any:
    """Embedded tokens, read from both ends, with attention over the steps; in bfloat16."""
    tokens = keras.Input((12,), dtype="int32", name="tokens")
    x = layers.Embedding(50, 8, name="embedding")(tokens)
    x = layers.Bidirectional(layers.LSTM(8, return_sequences=True), name="both_ways")(x)
    weights = layers.Softmax(axis=1, name="over_steps")(layers.Dense(1, name="relevance")(x))
    return regressor(tokens, layers.Dot((1, 1), name="mix")([weights, x]), 0.003)


def sentences() -> Data:
    tokens = random(0).integers(0, 50, (200 * 64, 12)).astype(np.int32)
    worth = random(1).standard_normal(50)
    return Data(tokens, noisy(worth[tokens].max(1, keepdims=True), 2, noise=0.5))


def sparse_counts() -> Any:
    """Counts of words, nearly all zero, some of thousands; their logarithm is taken at once."""
    inputs = keras.Input((100,), name="input")
    x = Compute(tf.math.log1p, "log1p")(inputs)
    return regressor(inputs, layers.Dense(16, "relu", kernel_regularizer="l2", name="hidden")(x), 0.003)


def word_counts() -> Data:
    x = random(0).poisson(0.1, (200 * 64, 100)) * random(1).integers(1, 3000, (200 * 64, 100))
    return Data(x.astype(np.float32), noisy(linear_target(np.log1p(x), 2), 3))


CASES = tuple(
    Case(name, reason, make, data, action="none", **labels)
    for name, reason, make, data, labels in (
        ("unet", "A U-Net with a float32 head.", unet, discs, {"batch": 32}),
        ("mlp_mixer", "MLP-Mixer.", mlp_mixer, coloured_images, {}),
        (
            "mlp_mixer_bfloat16",
            "MLP-Mixer in bfloat16.",
            mlp_mixer,
            coloured_images,
            {"policy": "mixed_bfloat16"},
        ),
        ("mobile_net", "Depthwise convolutions and ReLU6.", mobile_net, coloured_images, {}),
        (
            "dropout",
            "Half of all activations are dropped three times; in float16 they are others, hence the wider bound.",
            dropout_everywhere,
            many_rows,
            {"bound": 0.06},
        ),
        (
            "library_log_sum_exp",
            "Log-sum-exp that subtracts the maximum, of values of 12.",
            library_log_sum_exp,
            many_rows,
            {"first_bad_step": 0},
        ),
        (
            "group_norm_keras",
            "Keras' GroupNormalization computes in float32.",
            keras_group_norm,
            partial(coloured_images, scale=40.0),
            {},
        ),
        (
            "two_towers",
            "Unit vectors of embeddings of 0.1 with an epsilon of 1e-4, and a lower scale.",
            partial(third.two_towers, 1e-4, 0.1, 3e-3, 2.0**8),
            third.ratings,
            {},
        ),
        (
            "focal_loss_float32",
            "The focal loss of float32 probabilities.",
            partial(third.rare_event, "float32"),
            third.rare_events,
            {"first_bad_step": 1},
        ),
        ("one_huber", "Huber's loss as a layer, with outliers.", huber_layer, with_outliers, {}),
        ("polynomial_of_3", "Fourth powers of values up to 3.", third.polynomial, partial(third.values_up_to, 3.0), {}),
        (
            "normalization_of_5",
            "Keras' Normalization of values around 5.",
            partial(third.barometer, 5.0, 2.0),
            partial(third.values_around, 5.0, 2.0),
            {},
        ),
        (
            "fourier_low",
            "Frequencies of up to 3.",
            partial(third.fourier_features, 3.0),
            partial(third.fine_picture, 3.0),
            {},
        ),
        (
            "labels_of_1000",
            "Labels below 2,048 survive float16.",
            partial(third.labels_as_numbers, 1000),
            partial(third.many_classes, 1000),
            {},
        ),
        ("elapsed_short", "Differences of times of up to 10.", third.elapsed_time, partial(third.times, 10.0), {}),
        (
            "averaged_maps",
            "Averages over 4,096 pixels; its loss scale seeks its level for seven steps, hence the wider bound.",
            averaged_maps,
            large_maps,
            {"batch": 16, "bound": 0.04, "first_bad_step": 0},
        ),
        ("bilstm_bfloat16", "LSTMs from both ends.", bilstm, sentences, {"policy": "mixed_bfloat16"}),
        (
            "word_counts",
            "The logarithm of counts, most of them zero.",
            sparse_counts,
            word_counts,
            {"first_bad_step": 0},
        ),
    )
)
