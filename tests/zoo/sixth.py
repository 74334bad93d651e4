"""Cases written after the rules had been mended for those of `fifth.py`, from what people meet in public threads."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.zoo.case import Case, Data
from tests.zoo.parts import Compute, compiled, many_rows, noisy, random, regressor

__all__ = ["CASES"]

layers = keras.layers
ROWS = 200 * 64  # as many as 200 steps take


class SlowAverage(keras.layers.Layer):
    """A diagonal state-space model: each channel forgets by a fixed factor, close to 1, in each step."""

    def __init__(self, rates: tuple[float, ...], name: str) -> None:
        super().__init__(name=name)
        self.rates = rates

    def call(self, x: Any) -> Any:
        decay = tf.exp(-tf.constant(self.rates, x.dtype))
        state = tf.zeros_like(x[:, 0])
        for step in range(x.shape[1]):
            state = decay * state + (1 - decay) * x[:, step]
        return state


def state_space() -> Any:
    inputs = keras.Input((48, 2), name="input")
    x = layers.Dense(8, name="channels")(inputs)
    x = SlowAverage(tuple(0.001 + 0.0001 * np.arange(8)), "recurrence")(x)
    return regressor(inputs, layers.BatchNormalization(name="norm")(x), 0.01)


def drifting_signals(rate: float) -> Data:
    x = random(0).standard_normal((ROWS, 48, 2)) + random(1).standard_normal((ROWS, 1, 2))
    weights = np.exp(-rate * np.arange(48)[::-1])
    return Data(x.astype(np.float32), noisy((x * weights[:, None]).sum(1) @ np.array([[1.0], [0.5]]), 2))


class Divergence(keras.layers.Layer):
    """Adds the divergence of a normal distribution from the standard one to the loss; hands on its sample."""

    def __init__(self, weight: float, name: str) -> None:
        super().__init__(name=name)
        self.weight = weight

    def call(self, mean: Any, log_variance: Any, noise: Any) -> Any:
        terms = 1 + log_variance - tf.square(mean) - tf.exp(log_variance)
        self.add_loss(tf.cast(-0.5 * self.weight * tf.reduce_mean(tf.reduce_sum(terms, -1)), "float32"))
        return mean + tf.exp(0.5 * tf.minimum(log_variance, 0.0)) * noise


def auto_encoder(spread: float) -> Any:
    pixels, noise = keras.Input((16,), name="pixels"), keras.Input((4,), name="noise")
    x = layers.Dense(16, "tanh", name="encoder")(pixels)
    mean = layers.Dense(4, name="mean")(x)
    start = keras.initializers.RandomNormal(stddev=spread, seed=3)
    log_variance = layers.Dense(4, kernel_initializer=start, name="log_variance")(x)
    code = Divergence(1e-6 if spread > 1 else 1e-2, "divergence")(mean, log_variance, noise)
    outputs = layers.Dense(16, dtype="float32", name="decoder")(code)
    return compiled(keras.Model([pixels, noise], outputs), "mse", keras.optimizers.Adam(0.01))


def pixels_and_noise() -> Data:
    hidden = random(0).standard_normal((ROWS, 3))
    pixels = hidden @ random(1).standard_normal((3, 16)) + 0.3 * random(2).standard_normal((ROWS, 16))
    noise = random(3).standard_normal((ROWS, 4))
    pixels = pixels.astype(np.float32)
    return Data({"pixels": pixels, "noise": noise.astype(np.float32)}, pixels)


def mixture_density() -> Any:
    """The likelihood of a mixture of three normal distributions, written as it stands in Bishop's book."""
    inputs, wanted = keras.Input((16,), name="input"), keras.Input((1,), name="wanted")
    x = layers.Dense(32, "tanh", name="hidden")(inputs)
    weights = layers.Dense(3, "softmax", name="weights")(x)
    centres = layers.Dense(3, name="centres")(x)
    widths = layers.Dense(3, "softplus", name="widths")(x)

    def negative_log_likelihood(weights: Any, centres: Any, widths: Any, wanted: Any) -> Any:
        widths = widths + 0.05
        density = tf.exp(-0.5 * tf.square((wanted - centres) / widths)) / (widths * np.sqrt(2 * np.pi))
        return -tf.math.log(tf.reduce_sum(weights * density, -1, keepdims=True))

    out = Compute(negative_log_likelihood, "likelihood")(weights, centres, widths, wanted)
    model = keras.Model([inputs, wanted], out)
    return compiled(model, lambda _, loss: tf.reduce_mean(loss), keras.optimizers.Adam(0.005))


def two_branches() -> Data:
    data = many_rows()
    sign = np.where(random(5).uniform(size=(ROWS, 1)) < 0.5, -1, 1)
    wanted = (sign * (3 + data.y)).astype(np.float32)
    return Data({"input": data.x, "wanted": wanted}, wanted)


def energy_difference() -> Any:
    """What a change does to an energy: the energies before and after are layers, and so is their difference."""
    before, after = keras.Input((16,), name="before"), keras.Input((16,), name="after")
    energy = partial(Compute, lambda x: tf.reduce_mean(tf.square(x), -1, keepdims=True))
    difference = Compute(lambda a, b: (b - a) / 50, "difference")
    return regressor([before, after], difference(energy("energy_before")(before), energy("energy_after")(after)), 0.03)


def small_changes() -> Data:
    before = 100 + 10 * random(0).standard_normal((ROWS, 16))
    after = before + random(1).standard_normal((ROWS, 16))
    change = ((after**2).mean(1, keepdims=True) - (before**2).mean(1, keepdims=True)) / 50
    return Data({"before": before.astype(np.float32), "after": after.astype(np.float32)}, noisy(change, 2))


def two_answers(scale: float, offset: float) -> Any:
    """Two outputs; the pressure is brought back to its unit by the last layer."""
    inputs = keras.Input((16,), name="input")
    x = layers.Dense(32, "relu", name="hidden")(inputs)
    pressure = layers.Rescaling(scale, offset, name="in_pascal")(layers.Dense(1, name="pressure")(x))
    rain = layers.Dense(1, "sigmoid", dtype="float32", name="rain")(x)
    model = keras.Model(inputs, {"in_pascal": pressure, "rain": rain})
    losses = {"in_pascal": "mse", "rain": "binary_crossentropy"}
    return compiled(model, losses, keras.optimizers.Adam(0.01), loss_weights={"in_pascal": 1 / scale**2, "rain": 0.1})


def weather(scale: float, offset: float) -> Data:
    data = many_rows()
    rain = (data.x[:, :1] + random(7).standard_normal((ROWS, 1)) > 0).astype(np.float32)
    return Data(data.x, {"in_pascal": (offset + scale * data.y).astype(np.float32), "rain": rain})


class PositionBias(keras.layers.Layer):
    """Adds a slope times the key's position (or minus its distance to the last query) to scores, as ALiBi does."""

    def __init__(self, slope: float, relative: bool, name: str) -> None:
        super().__init__(name=name)
        self.slope, self.relative = slope, relative

    def call(self, scores: Any) -> Any:
        keys = tf.range(scores.shape[-1])
        bias = keys - (scores.shape[-1] - 1) if self.relative else keys
        return scores + self.slope * tf.cast(bias, scores.dtype)


def attention_of_the_last(relative: bool) -> Any:
    """The last query attends to all keys; recent ones count for more."""
    inputs = keras.Input((400, 4), name="input")
    scores = layers.Reshape((400,), name="row")(layers.Dense(1, name="scores")(inputs))
    shares = layers.Softmax(name="softmax")(PositionBias(0.5, relative, "alibi")(scores))
    values = layers.Dense(8, name="values")(inputs)
    return regressor(inputs, layers.Dot(1, name="mix")([shares, values]), 0.01)


def recent_matters() -> Data:
    x = random(0).standard_normal((32 * 64, 400, 4))
    scores = x[..., 0] + 0.5 * np.arange(400)
    shares = np.exp(scores - scores.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return Data(x.astype(np.float32), noisy((shares[..., None] * x[..., 1:2]).sum(1), 1))


def rotation_angle() -> Any:
    """The angle between the predicted direction and the true one, by an arc cosine clipped at 1 - 1e-6."""
    inputs, wanted = keras.Input((16,), name="input"), keras.Input((3,), name="wanted")
    x = layers.Dense(32, "tanh", name="hidden")(inputs)
    direction = layers.UnitNormalization(dtype="float32", name="unit")(
        layers.Dense(3, dtype="float32", name="to_3d")(x)
    )

    def angle(a: Any, b: Any) -> Any:
        cosine = tf.reduce_sum(a * b, -1, keepdims=True)
        return tf.acos(tf.clip_by_value(cosine, -1 + 1e-6, 1 - 1e-6))

    out = Compute(angle, "angle")(direction, wanted)
    model = keras.Model([inputs, wanted], out)
    return compiled(model, lambda _, loss: tf.reduce_mean(loss), keras.optimizers.Adam(0.003))


def directions() -> Data:
    x = many_rows().x
    wanted = x @ random(8).standard_normal((16, 3)) / 4 + 0.2 * random(9).standard_normal((ROWS, 3))
    wanted = (wanted / np.linalg.norm(wanted, axis=1, keepdims=True)).astype(np.float32)
    return Data({"input": x, "wanted": wanted}, wanted[:, :1])


class GeneralizedMean(keras.layers.Layer):
    """GeM pooling with a learned power, as image retrieval has it."""

    def __init__(self, epsilon: float, name: str) -> None:
        super().__init__(name=name)
        self.epsilon = epsilon
        self.power = self.add_weight(shape=(), initializer=keras.initializers.Constant(3.0), name="power")

    def call(self, x: Any) -> Any:
        power = tf.cast(self.power, x.dtype)
        mean = tf.reduce_mean(tf.pow(tf.maximum(x, tf.cast(self.epsilon, x.dtype)), power), [1, 2])
        return tf.pow(mean, 1 / power)


def retrieval(epsilon: float) -> Any:
    inputs = keras.Input((6, 6, 3), name="input")
    x = layers.Conv2D(12, 3, activation="relu", name="conv")(inputs)
    return regressor(inputs, layers.Dense(16, "tanh", name="hidden")(GeneralizedMean(epsilon, "gem")(x)), 0.005)


def small_images() -> Data:
    colour = random(0).standard_normal((ROWS, 1, 1, 3))
    x = colour + 0.3 * random(1).standard_normal((ROWS, 6, 6, 3))
    return Data(x.astype(np.float32), noisy(np.abs(colour[:, 0, 0]) @ np.array([[1.0], [-1.0], [0.5]]), 2))


class ForwardAlgorithm(keras.layers.Layer):
    """The negative log-likelihood of a hidden Markov model, by products of probabilities."""

    def __init__(self, states: int, name: str) -> None:
        super().__init__(name=name)
        self.moves = self.add_weight(shape=(states, states), initializer="random_normal", name="moves")

    def call(self, emissions: Any) -> Any:
        moves = tf.nn.softmax(tf.cast(self.moves, emissions.dtype))
        alpha = emissions[:, 0] / moves.shape[0]
        for step in range(1, emissions.shape[1]):
            alpha = tf.matmul(alpha, moves) * emissions[:, step]
        return -tf.math.log(tf.reduce_sum(alpha, -1, keepdims=True))


def hidden_markov_model(length: int) -> Any:
    symbols = keras.Input((length,), dtype="int32", name="symbols")
    table = layers.Embedding(8, 3, name="table")(symbols)
    emissions = layers.Softmax(axis=-1, name="emissions")(table)
    out = ForwardAlgorithm(3, "forward")(layers.Rescaling(0.4, name="share")(emissions))
    model = keras.Model(symbols, out)
    return compiled(model, lambda _, loss: tf.reduce_mean(loss), keras.optimizers.Adam(0.01))


def symbol_sequences(length: int) -> Data:
    state = random(0).integers(0, 3, (ROWS, 1 + length // 8)).repeat(8, 1)[:, :length]
    symbols = np.where(random(1).uniform(size=state.shape) < 0.7, state, random(2).integers(0, 8, state.shape))
    return Data(symbols.astype(np.int32), np.zeros((ROWS, 1), np.float32))


class GatedPool(keras.Model):
    """A subclassed model: the mean of the words that a mask leaves, then a SwiGLU block."""

    def __init__(self, epsilon: float, width: float) -> None:
        super().__init__()
        wide = keras.initializers.RandomNormal(stddev=width, seed=5)
        self.embed = layers.Dense(16, name="embed")
        self.pool = Compute(lambda x, mask: tf.reduce_sum(x * mask, 1) / (tf.reduce_sum(mask, 1) + epsilon), "pool")
        self.gate = layers.Dense(32, "silu", kernel_initializer=wide, name="gate")
        self.up = layers.Dense(32, kernel_initializer=wide, name="up")
        self.product = layers.Multiply(name="product")
        self.down = layers.Dense(16, kernel_initializer=keras.initializers.RandomNormal(stddev=0.01), name="down")
        self.norm = layers.LayerNormalization(name="norm")
        self.head = layers.Dense(1, dtype="float32", name="head")

    def call(self, inputs: Any) -> Any:
        x = self.pool(self.embed(inputs["words"]), inputs["mask"])
        return self.head(self.norm(self.down(self.product([self.gate(x), self.up(x)]))))


def gated_pool(epsilon: float, width: float) -> Any:
    return compiled(GatedPool(epsilon, width), "mse", keras.optimizers.Adam(0.005))


def masked_words(empty: bool) -> Data:
    topic = random(0).standard_normal((ROWS, 1, 8))
    words = 3 * topic + random(1).standard_normal((ROWS, 12, 8))
    mask = np.arange(12)[None, :, None] < random(2).integers(1, 13, (ROWS, 1, 1))
    if empty:
        mask[2000::50] = False
    target = noisy(np.tanh(topic[:, 0, :1]) + 0.5 * topic[:, 0, 1:2], 3)
    return Data({"words": words.astype(np.float32), "mask": mask.astype(np.float32)}, target)


class CellByHand(keras.layers.Layer):
    """An LSTM's cell with a norm by hand on its state, for `keras.layers.RNN`."""

    def __init__(self, units: int, name: str) -> None:
        super().__init__(name=name)
        self.units, self.state_size = units, [units, units]

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1] + self.units, 4 * self.units), name="kernel")

    def call(self, x: Any, states: Any) -> Any:
        hidden, cell = states
        gates = tf.matmul(tf.concat([x, hidden], -1), tf.cast(self.kernel, x.dtype))
        enter, forget, leave, new = tf.split(gates, 4, -1)
        cell = tf.sigmoid(forget + 1) * cell + tf.sigmoid(enter) * tf.tanh(new)
        centred = cell - tf.reduce_mean(cell, -1, keepdims=True)
        normal = centred * tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + 1e-2)
        hidden = tf.sigmoid(leave) * tf.tanh(normal)
        return hidden, [hidden, cell]


def recurrent_by_hand() -> Any:
    inputs = keras.Input((12, 3), name="input")
    return regressor(inputs, layers.RNN(CellByHand(12, "cell"), name="rnn")(inputs), 0.005)


def walks() -> Data:
    x = random(0).standard_normal((ROWS, 12, 3))
    return Data(x.astype(np.float32), noisy(x[:, -4:].mean(1) @ np.array([[1.0], [-1.0], [0.5]]), 1))


class LearnedTemperature(keras.layers.Layer):
    """Multiplies by the exponential of a weight, as CLIP does."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        start = keras.initializers.Constant(np.log(1 / 0.07))
        self.log_scale = self.add_weight(shape=(), initializer=start, name="log_scale")

    def call(self, image: Any, text: Any) -> Any:
        return tf.exp(tf.cast(self.log_scale, image.dtype)) * tf.matmul(image, text, transpose_b=True)


def images_and_texts() -> Any:
    """CLIP: the logits of all pairs, in 16 bits; the cross-entropy is Keras', in float32."""
    image, text = keras.Input((16,), name="image"), keras.Input((16,), name="text")
    unit = layers.UnitNormalization(name="unit")
    logits = LearnedTemperature("logits")(
        unit(layers.Dense(16, name="image_tower")(image)), unit(layers.Dense(16, name="text_tower")(text))
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return compiled(keras.Model([image, text], logits), loss, keras.optimizers.Adam(0.003))


def captions() -> Data:
    image = random(0).standard_normal((ROWS, 16))
    text = image @ random(1).standard_normal((16, 16)) / 4 + random(2).standard_normal((ROWS, 16))
    return Data({"image": image.astype(np.float32), "text": text.astype(np.float32)}, np.arange(ROWS) % 64)


def smoothed_labels() -> Any:
    """A spectral norm, and logits in bfloat16 under a cross-entropy with smoothed labels."""
    inputs = keras.Input((16,), name="input")
    x = layers.SpectralNormalization(layers.Dense(32, "relu", name="inner"), name="spectral")(inputs)
    logits = layers.Dense(5, name="logits")(x)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    return compiled(keras.Model(inputs, logits), loss, keras.optimizers.Adam(0.005))


def five_classes() -> Data:
    x = many_rows().x
    scores = x @ random(1).standard_normal((16, 5)) / 2 + random(2).gumbel(size=(ROWS, 5))
    return Data(x, np.eye(5, dtype=np.float32)[scores.argmax(1)])


def polar_by_operations() -> Any:
    """Operations without a layer (`keras.ops` on symbolic tensors), and two outputs in 16 bits."""
    inputs = keras.Input((2,), name="point")
    radius = keras.ops.sqrt(keras.ops.sum(keras.ops.square(inputs), -1, keepdims=True) + 1e-3)
    angle = keras.ops.arctan2(inputs[:, 1:], inputs[:, :1])
    features = keras.ops.concatenate([radius, keras.ops.sin(3 * angle), keras.ops.cos(3 * angle)], -1)
    x = layers.Dense(16, "tanh", name="hidden")(features)
    outputs = {"reach": layers.Dense(1, name="reach")(x), "turn": layers.Dense(1, name="turn")(x)}
    return compiled(keras.Model(inputs, outputs), {"reach": "mse", "turn": "huber"}, keras.optimizers.Adam(0.01))


def points() -> Data:
    x = random(0).standard_normal((ROWS, 2)).astype(np.float32)
    turn = np.sin(3 * np.arctan2(x[:, 1:], x[:, :1]))
    return Data(x, {"reach": noisy(np.hypot(x[:, :1], x[:, 1:]), 1), "turn": noisy(turn, 2)})


CASES = (
    Case(
        "state_space_bfloat16",
        "A channel of a state-space model forgets 0.1 % a step; 1 - 0.001 is 1 in bfloat16, and it takes in nothing. "
        "Silent.",
        state_space,
        partial(drifting_signals, 0.0015),
        truth=frozenset({"recurrence"}),
        policy="mixed_bfloat16",
    ),
    Case(
        "log_variance_of_12",
        "The divergence of a variational auto-encoder takes exp of log-variances of 12 and more: infinite in float16.",
        partial(auto_encoder, 2.5),
        pixels_and_noise,
        truth=frozenset({"divergence"}),
        goes_nonfinite=True,
        source_layer="divergence",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "mixture_density",
        "The densities of a mixture vanish in float16 a few widths from every centre: log(0) is minus infinity.",
        mixture_density,
        two_branches,
        truth=frozenset({"likelihood"}),
        goes_nonfinite=True,
        source_layer="likelihood",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "energy_difference_bfloat16",
        "Two energies of 10,000, rounded to steps of 64, whose difference of some tens counts. Silent.",
        energy_difference,
        small_changes,
        truth=frozenset({"energy_before", "energy_after", "difference"}),
        policy="mixed_bfloat16",
    ),
    Case(
        "output_in_pascal",
        "The last layer brings a standardized answer back to its unit: 1,013 and a few, in steps of 4. Silent.",
        partial(two_answers, 4.0, 1013.0),
        partial(weather, 4.0, 1013.0),
        truth=frozenset({"in_pascal"}),
        policy="mixed_bfloat16",
    ),
    Case(
        "absolute_alibi_bfloat16",
        "A bias of half the key's position, up to 200, swallows what scores say about recent keys in bfloat16. Silent.",
        partial(attention_of_the_last, False),
        recent_matters,
        truth=frozenset({"alibi", "softmax"}),
        policy="mixed_bfloat16",
    ),
    Case(
        "angle_of_rotation",
        "1 - 1e-6 is 1 in float16, and there an arc cosine has an infinite slope.",
        rotation_angle,
        directions,
        truth=frozenset({"angle"}),
        goes_nonfinite=True,
        source_layer="angle",
        direction="backward",
        first_bad_step=32,
    ),
    Case(
        "gem_pooling",
        "A channel of zeros: the third power of 1e-6 is 0 in float16, where a third root has an infinite slope.",
        partial(retrieval, 1e-6),
        small_images,
        truth=frozenset({"gem"}),
        goes_nonfinite=True,
        source_layer="gem",
        direction="backward",
        first_bad_step=0,
    ),
    Case(
        "forward_algorithm",
        "The product of 24 probabilities of 0.13 is 0 in float16, and its logarithm minus infinity.",
        partial(hidden_markov_model, 24),
        partial(symbol_sequences, 24),
        truth=frozenset({"forward"}),
        goes_nonfinite=True,
        source_layer="forward",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "masked_swiglu",
        "Two causes in a subclassed model: the product of a SwiGLU exceeds 65,504, and a mean over no words at all "
        "divides 0 by an epsilon of 1e-9, which is 0 in float16.",
        partial(gated_pool, 1e-9, 40.0),
        partial(masked_words, True),
        truth=frozenset({"pool", "product", "down"}),
        goes_nonfinite=True,
        source_layer="product",
        direction="forward",
        first_bad_step=0,
    ),
    Case(
        "cell_by_hand",
        "An LSTM's cell and a norm by hand, with a float32 head.",
        recurrent_by_hand,
        walks,
        action="none",
    ),
    Case(
        "images_and_texts",
        "CLIP with a learned temperature; float16 logits, a float32 loss.",
        images_and_texts,
        captions,
        action="none",
        first_bad_step=0,
    ),
    Case(
        "auto_encoder",
        "A variational auto-encoder with log-variances around 0.",
        partial(auto_encoder, 0.1),
        pixels_and_noise,
        action="none",
    ),
    Case(
        "relative_alibi_bfloat16",
        "A bias of half the distance: exact where it is small, and where it is large the share is 0.",
        partial(attention_of_the_last, True),
        recent_matters,
        action="none",
        policy="mixed_bfloat16",
    ),
    Case(
        "smoothed_labels_bfloat16",
        "Spectral norm, smoothed labels, logits in bfloat16.",
        smoothed_labels,
        five_classes,
        action="none",
        policy="mixed_bfloat16",
    ),
    Case(
        "polar_by_operations",
        "Operations without a layer, and two float16 outputs of standardized targets.",
        polar_by_operations,
        points,
        action="none",
    ),
)
