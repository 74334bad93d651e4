"""Configurations: models of every form: several inputs and outputs, shared layers, dicts, odd outputs, odd dtypes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
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

GROUP = "Forms of models"
layers, ops = keras.layers, keras.ops
MANY = BATCH * STEPS


@configuration("several inputs and outputs, losses by name and weight", GROUP, policies=POLICIES, quick=True)
def several() -> Training:
    image, number = keras.Input((6, 6, 1), name="image"), keras.Input((3,), name="number")
    x = layers.Conv2D(2, 3, activation="relu")(image)
    x = layers.Concatenate()([layers.Flatten()(x), layers.Dense(4)(number)])
    kind = layers.Dense(3, dtype="float32", name="kind")(x)
    size = layers.Dense(1, name="size")(x)
    model = keras.Model([image, number], {"kind": kind, "size": size})
    losses = {"kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "size": "mse"}
    compiled(model, losses, loss_weights={"kind": 1.0, "size": 0.3}, metrics={"size": "mae"})
    targets = {"kind": integers(3, MANY), "size": noise(MANY, 1)}
    return fit(model, {"image": noise(MANY, 6, 6, 1), "number": noise(MANY, 3)}, targets)


@configuration("dict inputs in a subclassed model, dict outputs", GROUP)
def dicts() -> Training:
    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = layers.Dense(3), layers.Dense(3)

        def call(self, data: Any) -> Any:
            return {"sum": self.left(data["a"]) + self.right(data["b"]["c"])}

    data = {"a": noise(MANY, 3), "b": {"c": noise(MANY, 2)}}
    return fit(compiled(Net(), {"sum": "mse"}), data, {"sum": noise(MANY, 3)})


@configuration(
    "an output that nothing learns from",
    GROUP,
    unseen={"idle": "no gradient arrives"},
    weights_unseen="no gradient reaches one layer",
)
def idle_output() -> Training:
    inputs = keras.Input((4,))
    x = layers.Dense(4, "relu", name="body")(inputs)
    model = keras.Model(inputs, [layers.Dense(1, name="used")(x), layers.Dense(1, name="idle")(x)])
    return fit(compiled(model, ["mse", None]), noise(MANY, 4), noise(MANY, 1))


@configuration("shared layers, siamese", GROUP)
def siamese() -> Training:
    left, right = keras.Input((4,)), keras.Input((4,))
    tower = keras.Sequential([layers.Dense(5, "tanh"), layers.Dense(3)], name="tower")
    model = keras.Model([left, right], layers.Dot(-1)([tower(left), tower(right)]))
    return fit(compiled(model), [noise(MANY, 4), noise(MANY, 4, seed=2)], noise(MANY, 1))


@configuration("two models that share a layer, trained in turn", GROUP)
def shared_between() -> Training:
    inputs = keras.Input((4,))
    x = layers.Dense(5, "tanh", name="shared")(inputs)
    first = compiled(keras.Model(inputs, layers.Dense(1)(x)))
    second = compiled(keras.Model(inputs, layers.Dense(2)(x)))

    def run(session: Any) -> list[float]:
        losses = []
        for _ in range(3):
            losses += first.fit(noise(8, 4), noise(8, 1), batch_size=BATCH, verbose=0, shuffle=False).history["loss"]
            losses += second.fit(noise(8, 4), noise(8, 2), batch_size=BATCH, verbose=0, shuffle=False).history["loss"]
        return losses

    return Training(first, run, others=(second,))


@configuration("nested models with equal names", GROUP)
def nested() -> Training:
    def branch(name: str) -> Any:
        inner = keras.Input((4,))
        return keras.Model(inner, layers.Dense(3, name="dense")(inner), name=name)

    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Add()([branch("left")(inputs), branch("right")(inputs)]))
    return fit(compiled(model), noise(MANY, 4), noise(MANY, 3))


@configuration("a functional model with layers of its own beside the graph", GROUP)
def functional_subclass() -> Training:
    class Regularized(keras.Model):
        def __init__(self) -> None:
            inputs = keras.Input((4,))
            super().__init__(inputs, layers.Dense(3, name="body")(inputs))
            self.probe = layers.Dense(1)

        def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, *others: Any, **more: Any) -> Any:
            return super().compute_loss(x, y, y_pred, *others, **more) + ops.mean(
                ops.square(ops.cast(self.probe(y_pred), "float32"))
            )

    model = Regularized()
    model.probe.build((None, 3))
    return fit(compiled(model), noise(MANY, 4), noise(MANY, 3))


@configuration(
    "layers that return dicts, tuples and None",
    GROUP,
    quick=True,
    unseen={"nothing": "no float output", "several/.*": "no float output"},
)
def odd_outputs() -> Training:
    class Nothing(keras.layers.Layer):
        def call(self, x: Any) -> None:
            return None

    class Several(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return {"twice": 2 * x, "where": ops.argmax(x, -1), "none": None, "pair": (x / 2, ops.cast(x, "float32"))}

    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.nothing, self.several, self.head = layers.Dense(4), Nothing(), Several(), layers.Dense(1)

        def call(self, x: Any) -> Any:
            x = self.body(x)
            self.nothing(x)
            parts = self.several(x)
            return self.head(parts["twice"] + parts["pair"][0] + ops.cast(parts["pair"][1], x.dtype))

    return fit(compiled(Net()), noise(MANY, 4), noise(MANY, 1))


@configuration("a model that is built by its first batch", GROUP)
def lazy() -> Training:
    class Inner(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.parts: list[Any] = []

        def build(self, shape: Any) -> None:
            self.parts = [layers.Dense(shape[-1]) for _ in range(2)]
            for part in self.parts:
                part.build(shape)

        def call(self, x: Any) -> Any:
            for part in self.parts:
                x = x + part(x)
            return x

    return fit(compiled(keras.Sequential([Inner(), layers.Dense(1)])), noise(MANY, 4), noise(MANY, 1))


@configuration("layers of several dtypes in one model, float64 among them", GROUP)
def several_dtypes() -> Training:
    inputs = keras.Input((4,))
    x = layers.Dense(4, dtype="mixed_float16")(inputs)
    x = layers.Dense(4, dtype="mixed_bfloat16")(x)
    x = layers.Dense(4, dtype="float64")(x)
    x = layers.Dense(4, dtype="bfloat16")(x)
    model = keras.Model(inputs, layers.Dense(1, dtype="float32")(x))
    return fit(compiled(model), noise(MANY, 4), noise(MANY, 1))


@configuration("pure float16 and pure bfloat16 weights", GROUP)
def pure() -> Training:
    inputs = keras.Input((4,))
    x = layers.Dense(4, "tanh", dtype="float16")(inputs)
    x = layers.Dense(4, "tanh", dtype="bfloat16")(x)
    return fit(compiled(keras.Model(inputs, layers.Dense(1, dtype="float32")(x))), noise(MANY, 4), noise(MANY, 1))


@configuration(
    "preprocessing layers inside the model",
    GROUP,
    unseen={
        "(lookup|hash|bucket).*": "no float output",
        "(scale|normal|lookup|hash|one_hot|concatenate).*": "no gradient arrives",
    },
)
def preprocessing() -> Training:
    number, word = keras.Input((3,)), keras.Input((1,), dtype="int32")
    normal = layers.Normalization(name="normal")
    normal.adapt(noise(20, 3))
    hashed = layers.Hashing(5, name="hash", output_mode="one_hot")(word)
    x = layers.Concatenate()([layers.Rescaling(0.5, name="scale")(normal(number)), hashed])
    model = keras.Model([number, word], layers.Dense(1)(x))
    return fit(compiled(model), [noise(MANY, 3), integers(50, MANY, 1)], noise(MANY, 1))


@configuration(
    "augmentation layers inside the model",
    GROUP,
    unseen={"(flip|turn|crop|contrast)": "no gradient arrives"},
)
def augmentation() -> Training:
    stack = [
        layers.RandomFlip(name="flip"),
        layers.RandomRotation(0.1, name="turn"),
        layers.RandomContrast(0.1, name="contrast"),
    ]
    model = keras.Sequential([keras.Input((8, 8, 3)), *stack, layers.Conv2D(2, 3), layers.GlobalAveragePooling2D()])
    return fit(compiled(model), noise(MANY, 8, 8, 3), noise(MANY, 2))


@configuration("noise and dropout layers", GROUP, unseen={"gaussian_noise": "no gradient arrives"})
def random_layers() -> Training:
    stack = [layers.GaussianNoise(0.1), layers.Dense(6), layers.GaussianDropout(0.1), layers.AlphaDropout(0.1)]
    model = keras.Sequential([keras.Input((4,)), *stack, layers.Dropout(0.3), layers.Dense(1)])
    return fit(compiled(model), noise(MANY, 4), noise(MANY, 1))


@configuration("every normalization layer", GROUP, policies=POLICIES)
def normalizations() -> Training:
    stack = [
        layers.BatchNormalization(),
        layers.LayerNormalization(),
        layers.GroupNormalization(2),
        layers.RMSNormalization(),
        layers.UnitNormalization(),
        layers.SpectralNormalization(layers.Dense(4)),
    ]
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4), *stack, layers.Dense(1)])
    return fit(compiled(model, optimizer=keras.optimizers.SGD(0.1)), noise(MANY, 4), noise(MANY, 1))


@configuration("every convolution", GROUP)
def convolutions() -> Training:
    plane = keras.Input((8, 8, 2))
    x = layers.Conv2D(4, 3, groups=2, padding="same")(plane)
    x = layers.DepthwiseConv2D(3, padding="same")(layers.SeparableConv2D(4, 3, dilation_rate=2, padding="same")(x))
    x = layers.Conv2DTranspose(2, 3, 2, padding="same")(layers.AveragePooling2D(2)(x))
    x = layers.UpSampling2D()(layers.MaxPooling2D(2)(x))
    y = layers.Conv1D(3, 2, padding="causal")(layers.Reshape((8, 16))(x))
    y = layers.Conv1DTranspose(2, 2)(layers.SeparableConv1D(2, 2)(layers.DepthwiseConv1D(2)(y)))
    z = layers.Conv3DTranspose(1, 2)(layers.Conv3D(2, 2)(layers.Reshape((4, 4, 4, 2))(x)))
    out = [layers.GlobalAveragePooling1D()(y), layers.GlobalMaxPooling3D()(z)]
    return fit(
        compiled(keras.Model(plane, layers.Dense(1)(layers.Concatenate()(out)))), noise(MANY, 8, 8, 2), noise(MANY, 1)
    )


@configuration("every merging layer, Lambda and operators", GROUP)
def merging() -> Training:
    inputs = keras.Input((4,))
    a, b = layers.Dense(4)(inputs), layers.Dense(4, "sigmoid")(inputs)
    merged = [layer()([a, b]) for layer in (layers.Add, layers.Subtract, layers.Multiply, layers.Average)]
    merged += [layers.Maximum()([a, b]), layers.Minimum()([a, b]), layers.Lambda(lambda x: x * 0.5)(a), a / (b + 1.0)]
    return fit(
        compiled(keras.Model(inputs, layers.Dense(1)(layers.Concatenate()(merged)))), noise(MANY, 4), noise(MANY, 1)
    )


@configuration("frozen layers", GROUP, quick=True, unseen={"frozen.*": "no gradient arrives"})
def frozen() -> Training:
    base = keras.Sequential([keras.Input((4,)), layers.Dense(6, "tanh"), layers.BatchNormalization()], name="frozen")
    base.trainable = False
    model = keras.Sequential([keras.Input((4,)), base, layers.Dense(1)])
    return fit(compiled(model), noise(MANY, 4), noise(MANY, 1))


# In 16 bits Keras itself cannot add the penalty on an activity to that on a weight.
@configuration("regularizers, constraints, add_loss and metrics", GROUP, policies=("float32",))
def regularized() -> Training:
    class Sparse(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            self.add_loss(0.01 * ops.mean(ops.abs(x)))
            return x * 1.5

    dense = layers.Dense(4, kernel_regularizer="l2", kernel_constraint="max_norm", activity_regularizer="l1")
    model = keras.Sequential([keras.Input((4,)), dense, Sparse(), layers.ActivityRegularization(0.1), layers.Dense(1)])
    return fit(compiled(model, metrics=["mae"], weighted_metrics=["mse"]), noise(MANY, 4), noise(MANY, 1))


@configuration("a variational autoencoder", GROUP, policies=POLICIES)
def autoencoder() -> Training:
    class Sampling(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.seeds = keras.random.SeedGenerator(3)

        def call(self, mean: Any, log_variance: Any) -> Any:
            kl = ops.mean(ops.square(mean) + ops.exp(log_variance) - 1 - log_variance) / 2
            self.add_loss(0.1 * ops.cast(kl, "float32"))
            return mean + ops.exp(log_variance / 2) * keras.random.normal((BATCH, 2), dtype=mean.dtype, seed=self.seeds)

    inputs = keras.Input((8, 8, 1))
    x = layers.Flatten()(layers.Conv2D(4, 3, 2, activation="relu")(inputs))
    x = Sampling()(layers.Dense(2, name="mean")(x), layers.Dense(2, name="variance")(x))
    x = layers.Conv2DTranspose(2, 3, 2, padding="same", activation="relu")(
        layers.Reshape((4, 4, 1))(layers.Dense(16)(x))
    )
    model = keras.Model(inputs, layers.Conv2D(1, 3, padding="same")(x))
    return fit(compiled(model), noise(MANY, 8, 8, 1), noise(MANY, 8, 8, 1))


@configuration("ragged last batch, in two epochs", GROUP, quick=True)
def ragged_last() -> Training:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(6, "tanh"), layers.Dense(1)])
    return fit(compiled(model), noise(BATCH * 3 + 1, 4), noise(BATCH * 3 + 1, 1), epochs=2)


@configuration("sequences of varying length from a generator", GROUP)
def varying_length() -> Training:
    def batches() -> Any:
        for length in (3, 5, 4, 5):
            yield noise(BATCH, length, 2), noise(BATCH, 1)

    spec = (tf.TensorSpec([None, None, 2], tf.float32), tf.TensorSpec([None, 1], tf.float32))
    data = tf.data.Dataset.from_generator(batches, output_signature=spec)
    model = keras.Sequential(
        [keras.Input((None, 2)), layers.Conv1D(3, 2), layers.GlobalAveragePooling1D(), layers.Dense(1)]
    )
    return fit(compiled(model), data)


@configuration("sparse tensors as input", GROUP)
def sparse_input() -> Training:
    inputs = keras.Input((20,), sparse=True)
    x = layers.Dense(5, "tanh", name="hidden")(inputs)
    model = compiled(keras.Model(inputs, layers.Dense(1, name="head")(x)))
    values = np.where(noise(MANY, 20) > 1, noise(MANY, 20, seed=8), 0).astype(np.float32)
    data = tf.data.Dataset.from_tensor_slices((tf.sparse.from_dense(values), noise(MANY, 1))).batch(BATCH)
    return fit(model, data)


@configuration("float64 and integer data, sample weights", GROUP)
def data_dtypes() -> Training:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(1)])
    x, y = noise(MANY, 4).astype(np.float64), integers(5, MANY, 1)
    return fit(compiled(model), x, y, sample_weight=np.linspace(0.1, 1, MANY))
