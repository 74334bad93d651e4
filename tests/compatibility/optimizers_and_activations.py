"""Configurations: every optimizer and every activation that Keras has, under the three policies."""

from __future__ import annotations

from typing import Any

import keras

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

OPTIMIZERS, ACTIVATIONS = "Optimizers", "Activations"
layers = keras.layers
MANY = BATCH * STEPS


def classifier(optimizer: Any) -> Training:
    """Return a training of a small classifier with a matrix, a vector and an embedding to learn."""
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Flatten()(layers.Embedding(11, 3, name="words")(inputs))
    x = layers.Dense(6, "tanh", name="hidden")(x)
    model = keras.Model(inputs, layers.Dense(3, dtype="float32", name="head")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return fit(compiled(model, loss, optimizer), integers(11, MANY, 5), integers(3, MANY))


def makers() -> dict[str, Any]:
    """Return what makes each of Keras' optimizers, by name."""
    optimizers = keras.optimizers
    special = {
        "Optimizer": None,  # the base class
        "LossScaleOptimizer": lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.05), dynamic_growth_steps=2),
        "MultiOptimizer": lambda: optimizers.MultiOptimizer(
            optimizers.OptimizerMap(optimizers.SGD(0.05), {"hidden/kernel": optimizers.Adam(0.01)})
        ),
        "Muon": lambda: optimizers.Muon(0.01, exclude_layers=["head"]),
    }
    known: dict[str, Any] = {}
    for name, kind in vars(optimizers).items():
        if isinstance(kind, type) and issubclass(kind, optimizers.Optimizer):
            known[name] = special.get(name, lambda kind=kind: kind(learning_rate=0.01))
    return {name: maker for name, maker in known.items() if maker is not None}


for optimizer_name, maker in makers().items():

    @configuration(optimizer_name, OPTIMIZERS, policies=POLICIES)
    def by_optimizer(maker: Any = maker) -> Training:
        return classifier(maker())


#: Arguments that an activation cannot do without.
ARGUMENTS: dict[str, dict[str, Any]] = {"threshold": {"threshold": 0.1, "default_value": 0.0}}


def activation_names() -> list[str]:
    """Return Keras' activation functions, each once."""
    found: dict[Any, str] = {}
    for name, function in sorted(vars(keras.activations).items()):
        if callable(function) and name not in ("deserialize", "get", "serialize") and not name.startswith("_"):
            found.setdefault(function, function.__name__)
    return sorted(set(found.values()))


def activation(name: str) -> Any:
    function = getattr(keras.activations, name)
    arguments = ARGUMENTS.get(name)
    return (lambda x: function(x, **arguments)) if arguments else function


@configuration("every activation, as a layer and within Dense", ACTIVATIONS, policies=POLICIES)
def activations() -> Training:
    inputs = keras.Input((4,))
    outputs = []
    for name in activation_names():
        if name == "sparsemax" and keras.config.dtype_policy().name != "float32":
            continue  # Keras computes it in float32 alone
        x = layers.Dense(4, name=f"{name}_before")(inputs)
        if name == "glu":  # it halves its input, which neither Activation nor Dense expects
            outputs.append(layers.Lambda(activation(name), name=f"{name}_layer")(x))
            continue
        x = layers.Activation(activation(name), name=f"{name}_layer")(x)
        outputs.append(layers.Dense(2, activation(name), name=f"{name}_within")(x))
    stack = [layers.LeakyReLU, layers.PReLU, layers.ELU, layers.Softmax, layers.ReLU]
    for kind in stack:
        outputs.append(kind(name=f"{kind.__name__}_layer")(layers.Dense(2, name=f"{kind.__name__}_before")(inputs)))
    model = keras.Model(inputs, layers.Concatenate()(outputs))
    return fit(compiled(model), noise(MANY, 4), noise(MANY, model.output_shape[-1]))
