"""Models with one fault each, for the tests of lint; also read as a user's file by the command."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

FLOAT16 = "mixed_float16"


class Float16Op(keras.layers.Layer):
    """Applies a function of TensorFlow."""

    def __init__(self, function: Any, **options: Any) -> None:
        super().__init__(dtype=FLOAT16, **options)
        self.function = function

    def call(self, x: Any) -> Any:
        return self.function(x)


class OwnNorm(keras.layers.Layer):
    """A norm written by hand, all of it in float16."""

    def __init__(self, **options: Any) -> None:
        super().__init__(dtype=FLOAT16, **options)
        self.epsilon = 1e-8

    def call(self, x: Any) -> Any:
        length = tf.reduce_sum(tf.square(x), axis=-1, keepdims=True)
        return x * tf.math.rsqrt(length + 1e-12)


class CarefulNorm(OwnNorm):
    """The same in float32, where its epsilon is no harm."""

    def call(self, x: Any) -> Any:
        wide = tf.cast(x, tf.float32)
        length = tf.reduce_sum(tf.square(wide), axis=-1, keepdims=True)
        return tf.cast(wide * tf.math.rsqrt(length + self.epsilon), x.dtype)


class IdsAsNumbers(keras.layers.Layer):
    """Makes numbers of ids."""

    def call(self, ids: Any) -> Any:
        return tf.cast(ids, self.compute_dtype)


def with_layer(layer: Any, features: int = 16, optimizer: Any = None) -> keras.Model:
    """Input, the layer, a float32 head; with a loss scale."""
    inputs = keras.Input((features,))
    outputs = keras.layers.Dense(8, dtype="float32", name="head")(layer(inputs))
    model = keras.Model(inputs, outputs)
    model.compile(optimizer or keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), "mse")
    return model


def build_bad_norm() -> keras.Model:
    return with_layer(OwnNorm(name="norm"), features=2048)


def build_good() -> tuple[keras.Model, tf.data.Dataset]:
    """Convolution, normalization, attention, pooling and dropout by Keras' own layers, and a float32 head."""
    policy = {"dtype": FLOAT16}
    inputs = keras.Input((16, 16, 8))
    x = keras.layers.Conv2D(16, 3, padding="same", **policy)(inputs)
    x = keras.layers.BatchNormalization(**policy)(x)
    x = keras.layers.ReLU(**policy)(x)
    x = keras.layers.Reshape((-1, 16), **policy)(x)
    x = keras.layers.MultiHeadAttention(2, 8, **policy)(x, x)
    x = keras.layers.LayerNormalization(epsilon=1e-6, **policy)(x)
    x = keras.layers.GlobalAveragePooling1D(**policy)(x)
    x = keras.layers.Dropout(0.1, **policy)(x)
    x = keras.layers.Dense(16, "relu", **policy)(x)
    model = keras.Model(inputs, keras.layers.Dense(8, "softmax", dtype="float32")(x), name="good")
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
    model.compile(optimizer, "sparse_categorical_crossentropy")
    batch = (np.zeros((4, 16, 16, 8), np.float32), np.zeros(4, np.int32))
    return model, tf.data.Dataset.from_tensors(batch)


class OwnTrainStep(keras.Model):
    """A train step written by hand that scales and clips as told."""

    def __init__(self, scale: Any, clip: Any) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(8, dtype=FLOAT16)
        self.scale, self.clip = scale, clip

    def call(self, x: Any, training: bool = False) -> Any:
        return tf.cast(self.dense(x), tf.float32)

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.scale(self.optimizer, self.compute_loss(y=y, y_pred=self(x, training=True)))
        gradients = self.clip(tape.gradient(loss, self.trainable_variables))
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}
