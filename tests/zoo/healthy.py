"""Healthy controls: models that look odd and need nothing."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.zoo.attention import masked_attention, padded_sequences
from tests.zoo.case import Case, Data
from tests.zoo.parts import Compute, compiled, linear_target, many_rows, noisy, random, regressor, standard_rows

__all__ = ["CASES"]

layers = keras.layers


def cnn() -> Any:
    inputs = keras.Input((8, 8, 4), name="input")
    x = inputs
    for block, filters in enumerate((8, 16), start=1):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv_{block}")(x)
        x = layers.BatchNormalization(name=f"norm_{block}")(x)
        x = layers.ReLU(name=f"relu_{block}")(x)
        x = layers.MaxPooling2D(name=f"pool_{block}")(x)
    x = layers.Flatten(name="flatten")(x)
    outputs = layers.Dense(4, "softmax", dtype="float32", name="head")(x)
    return compiled(keras.Model(inputs, outputs), "sparse_categorical_crossentropy", keras.optimizers.Adam(0.003))


def images_of_four_classes() -> Data:
    x = random(0).standard_normal((512, 8, 8, 4)).astype(np.float32)
    y = x.mean((1, 2)).argmax(1)
    wrong = random(1).uniform(size=512) < 0.2
    y[wrong] = random(2).integers(0, 4, wrong.sum())
    return Data(x, y)


def generator_and_discriminator() -> Any:
    """The two halves of a DCGAN in one pass: transposed convolutions to an image, strided ones to a number."""
    inputs = keras.Input((16,), name="latent")
    x = layers.Dense(4 * 4 * 16, use_bias=False, name="project")(inputs)
    x = layers.Reshape((4, 4, 16), name="reshape")(x)
    x = layers.BatchNormalization(name="g_norm_1")(x)
    x = layers.ReLU(name="g_relu_1")(x)
    x = layers.Conv2DTranspose(8, 4, strides=2, padding="same", use_bias=False, name="g_conv_2")(x)
    x = layers.BatchNormalization(name="g_norm_2")(x)
    x = layers.ReLU(name="g_relu_2")(x)
    image = layers.Conv2DTranspose(1, 4, strides=2, padding="same", activation="tanh", name="image")(x)
    x = layers.Conv2D(8, 4, strides=2, padding="same", name="d_conv_1")(image)
    x = layers.LeakyReLU(0.2, name="d_relu_1")(x)
    x = layers.Conv2D(16, 4, strides=2, padding="same", use_bias=False, name="d_conv_2")(x)
    x = layers.BatchNormalization(name="d_norm_2")(x)
    x = layers.LeakyReLU(0.2, name="d_relu_2")(x)
    return regressor(inputs, layers.Flatten(name="flatten")(x), 0.001)


def transformer() -> Any:
    tokens = keras.Input((8,), dtype="int32", name="tokens")
    stream = layers.Embedding(50, 16, name="embedding")(tokens)
    for block in (1, 2):
        x = layers.LayerNormalization(name=f"norm_a{block}")(stream)
        x = layers.MultiHeadAttention(2, 8, name=f"attention_{block}")(x, x)
        stream = layers.Add(name=f"add_a{block}")([stream, x])
        x = layers.LayerNormalization(name=f"norm_b{block}")(stream)
        x = layers.Dense(16, name=f"wo_{block}")(layers.Dense(32, "gelu", name=f"wi_{block}")(x))
        stream = layers.Add(name=f"add_b{block}")([stream, x])
    x = layers.LayerNormalization(name="norm")(stream)
    return regressor(tokens, layers.GlobalAveragePooling1D(name="pool")(x), 0.003)


def token_sequences() -> Data:
    tokens = random(0).integers(0, 50, (200 * 64, 8)).astype(np.int32)
    worth = random(1).standard_normal(50)
    return Data(tokens, noisy(worth[tokens].mean(1, keepdims=True), 2))


def layer_norm_of_large_values() -> Any:
    inputs = keras.Input((16,), name="input")
    x = layers.LayerNormalization(name="norm")(inputs)
    return regressor(inputs, layers.Dense(16, "tanh", name="hidden")(x))


def values_up_to_6e4() -> Data:
    data = standard_rows()
    return Data(np.clip(data.x * 2e4, -6e4, 6e4), data.y)


def probing_scale() -> Any:
    """A scale that doubles every 40 steps, near its level: every other doubling is one too many."""
    inputs = keras.Input((16,), name="input")
    x = layers.Dense(32, "relu", name="hidden")(inputs)
    outputs = layers.Dense(1, dtype="float32", name="head")(layers.Dense(16, "relu", name="hidden_2")(x))
    adam = keras.optimizers.Adam(0.003)
    optimizer = keras.optimizers.LossScaleOptimizer(adam, initial_scale=2.0**18, dynamic_growth_steps=40)
    return compiled(keras.Model(inputs, outputs), optimizer=optimizer, auto_scale_loss=False)


def relu_net() -> Any:
    inputs = keras.Input((16,), name="input")
    x = inputs
    for number in (1, 2, 3):
        # A bias below zero, so that some 60 % of what a layer puts out is zero.
        bias = keras.initializers.Constant(-0.2)
        x = layers.Dense(32, "relu", bias_initializer=bias, name=f"hidden_{number}")(x)
    return regressor(inputs, x, 0.003)


def gate_beside_the_way() -> Any:
    """A gate whose sigmoid is all but saturated: its gradients are tiny, and the way past it carries the signal."""
    inputs = keras.Input((16,), name="input")
    bias = keras.initializers.Constant(9.0)
    gate = layers.Dense(16, "sigmoid", bias_initializer=bias, name="gate")(inputs)
    x = layers.Dense(16, "tanh", name="hidden")(inputs)
    return regressor(inputs, layers.Multiply(name="gated")([gate, x]))


def resnet_18() -> Any:
    """ResNet-18's 18 layers with weights, with 8 to 16 filters."""
    inputs = keras.Input((8, 8, 3), name="input")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.ReLU(name="stem_relu")(layers.BatchNormalization(name="stem_norm")(x))
    for stage, (filters, strides) in enumerate(((8, 1), (8, 2), (16, 2), (16, 1)), start=1):
        for block in (1, 2):
            x = _residual_block(x, filters, strides if block == 1 else 1, f"s{stage}b{block}")
    return regressor(inputs, layers.GlobalAveragePooling2D(name="pool")(x), 0.001)


def _residual_block(x: Any, filters: int, strides: int, name: str) -> Any:
    way = x
    if strides > 1 or x.shape[-1] != filters:
        way = layers.Conv2D(filters, 1, strides=strides, use_bias=False, name=f"{name}_way")(x)
        way = layers.BatchNormalization(name=f"{name}_way_norm")(way)
    x = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False, name=f"{name}_conv1")(x)
    x = layers.ReLU(name=f"{name}_relu1")(layers.BatchNormalization(name=f"{name}_norm1")(x))
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"{name}_conv2")(x)
    x = layers.BatchNormalization(name=f"{name}_norm2")(x)
    return layers.ReLU(name=f"{name}_relu2")(layers.Add(name=f"{name}_add")([way, x]))


def small_images() -> Data:
    colour = random(1).standard_normal((200 * 32, 3))
    x = random(0).standard_normal((200 * 32, 8, 8, 3)) + colour[:, None, None]
    return Data(x.astype(np.float32), noisy(colour @ np.array([[1.0], [-1.0], [0.5]]), 2, noise=1.0))


def lstm() -> Any:
    inputs = keras.Input((10, 4), name="input")
    return regressor(inputs, layers.LSTM(16, name="lstm")(inputs))


def sequences_of_numbers() -> Data:
    x = random(0).standard_normal((512, 10, 4)).astype(np.float32)
    return Data(x, noisy(linear_target(x[:, -3:], 1), 2))


def harmless_mask() -> Any:
    """Minus infinity in a mask is what the softmax wants, as long as no row holds nothing else."""
    tokens, present = keras.Input((8, 16), name="tokens"), keras.Input((1, 8), name="present")
    query, key, value = (layers.Dense(16, name=name)(tokens) for name in ("query", "key", "value"))
    scores = Compute(lambda q, k: tf.matmul(q, k, transpose_b=True) / 4, "scores")(query, key)
    minus_infinity = Compute(lambda s, p: tf.where(p > 0, s, tf.cast(-1e9, s.dtype)), "mask")(scores, present)
    weights = layers.Activation("softmax", name="softmax")(minus_infinity)
    mixed = Compute(tf.matmul, "mix")(weights, value)
    return regressor([tokens, present], layers.GlobalAveragePooling1D(name="pool")(mixed))


def sequences_none_empty() -> Data:
    data = padded_sequences()
    data.x["present"][:, :, 0] = 1
    return data


def float16_mask() -> Any:
    return masked_attention(-3e4)


CASES = tuple(
    Case(name, reason, make, data, action="none", **labels)
    for name, reason, make, data, labels in (
        ("cnn", "Convolutions with BatchNorm and a float32 head.", cnn, images_of_four_classes, {}),
        (
            "dcgan",
            "Transposed convolutions, tanh, LeakyReLU.",
            generator_and_discriminator,
            many_rows,
            {},
        ),
        (
            "transformer_bfloat16",
            "Attention and feed-forward blocks in bfloat16.",
            transformer,
            token_sequences,
            {"policy": "mixed_bfloat16"},
        ),
        (
            "layer_norm_6e4",
            "Keras' norms compute in float32, so values of 60,000 are no harm.",
            layer_norm_of_large_values,
            values_up_to_6e4,
            {},
        ),
        (
            "scale_probes",
            "The loss scale is doubled once too often two or three times, and halved again.",
            probing_scale,
            standard_rows,
            {"first_bad_step": 0},
        ),
        ("relu_zeros", "60 % zeros behind a ReLU are no underflow.", relu_net, many_rows, {}),
        (
            "saturated_sigmoid",
            "The gradients behind a saturated gate vanish, and they do not matter.",
            gate_beside_the_way,
            many_rows,
            {},
        ),
        ("resnet18", "ResNet-18 with a float32 head.", resnet_18, small_images, {"batch": 32, "first_bad_step": 0}),
        ("lstm", "An LSTM with a float32 head.", lstm, sequences_of_numbers, {}),
        (
            "harmless_mask",
            "A mask of minus infinity that a softmax turns into zeros, no row of them all.",
            harmless_mask,
            sequences_none_empty,
            {},
        ),
        ("float16_mask", "A mask of -30,000, which float16 holds.", float16_mask, sequences_none_empty, {}),
    )
)
