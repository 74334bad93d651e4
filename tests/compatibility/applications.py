"""Configurations: every architecture of keras.applications, without weights, on small images."""

from __future__ import annotations

import inspect
from typing import Any

import keras

from tests.compatibility.configuration import BATCH, Training, compiled, configuration, fit, integers, noise

GROUP = "keras.applications"
CLASSES = 5
STEPS = 2
#: The smallest member of each family, which the matrix always runs; the others by option.
SMALLEST = {
    "convnext": "ConvNeXtTiny",
    "densenet": "DenseNet121",
    "efficientnet": "EfficientNetB0",
    "efficientnet_v2": "EfficientNetV2B0",
    "inception_resnet_v2": "InceptionResNetV2",
    "inception_v3": "InceptionV3",
    "mobilenet": "MobileNet",
    "mobilenet_v2": "MobileNetV2",
    "mobilenet_v3": "MobileNetV3Small",
    "nasnet": "NASNetMobile",
    "resnet": "ResNet50",
    "resnet_v2": "ResNet50V2",
    "vgg16": "VGG16",
    "vgg19": "VGG19",
    "xception": "Xception",
}
SIDE = {"inception_resnet_v2": 75, "inception_v3": 75, "xception": 71}
#: Without weights these take their input as it is; what they normalize has nothing to learn before it.
UNSEEN = {".*(rescaling|normalization|stem_conv_pad|prestem).*": "no gradient arrives"}


def families() -> dict[str, list[str]]:
    """Return the names of all architectures by family, the module that defines them."""
    found: dict[str, list[str]] = {}
    for name, function in sorted(vars(keras.applications).items()):
        if inspect.isfunction(function):
            found.setdefault(function.__module__.rsplit(".", 1)[-1], []).append(name)
    return found


def train(name: str, side: int) -> Training:
    keywords: dict[str, Any] = {"weights": None, "classes": CLASSES, "input_shape": (side, side, 3)}
    function = getattr(keras.applications, name)
    if "classifier_activation" in inspect.signature(function).parameters:
        keywords["classifier_activation"] = None
    model = function(**keywords)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled(model, loss, keras.optimizers.SGD(0.01), jit_compile=False)
    return fit(model, noise(BATCH * STEPS, side, side, 3), integers(CLASSES, BATCH * STEPS))


for family, names in families().items():
    for model_name in names:

        @configuration(model_name, GROUP, extended=SMALLEST.get(family) != model_name, unseen=UNSEEN)
        def application(name: str = model_name, side: int = SIDE.get(family, 32)) -> Training:
            return train(name, side)
