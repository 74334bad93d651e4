"""ResNet-18 (He et al. 2015, arXiv 1512.03385): four stages of two basic blocks, on images of 224x224x3.

Without a GPU the images are 64x64x3: on two CPU cores a step in 16 bits takes over a minute at the full size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from precscope.probes.demos import DemoData
from precscope.probes.demos.building import batches, compile_in, global_policy
from precscope.probes.demos.digits import load_digits

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BATCH_SIZE", "VALIDATION_SPLIT", "build", "build_for_bench", "load_data"]

BATCH_SIZE = 32
VALIDATION_SPLIT = 0.0

_WIDTH = 64  # channels of the first stage
_STAGES, _BLOCKS = 4, 2
_CLASSES = 10


@dataclass(frozen=True)
class _Size:
    """How much work the demo is: images' height and width, how many to train on and to test on, epochs."""

    image: int
    train: int
    test: int
    epochs: int


_ON_GPU = _Size(image=224, train=512, test=64, epochs=6)
_ON_CPU = _Size(image=64, train=6 * BATCH_SIZE, test=BATCH_SIZE, epochs=1)


def build(policy: str = "mixed_float16", image_size: int | None = None, width: int = _WIDTH) -> keras.Model:
    """Return the compiled model in the dtype policy called `policy`.

    The head ends in a softmax in float32, as Keras' guide to mixed precision advises.

    Args:
        policy: Name of the dtype policy.
        image_size: Height and width of the images; by default 224, without a GPU 64.
        width: Channels of the first stage; each further stage has twice as many.
    """
    image_size = image_size or _size().image
    with global_policy(policy):
        images = keras.Input((image_size, image_size, 3))
        x = _convolution(images, width, size=7, stride=2, name="stem")
        x = keras.layers.MaxPooling2D(3, strides=2, padding="same", name="stem_pool")(x)
        for stage in range(_STAGES):
            for block in range(_BLOCKS):
                stride = 2 if stage > 0 and block == 0 else 1
                x = _basic_block(x, width * 2**stage, stride, name=f"stage{stage + 1}_block{block + 1}")
        x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
        x = keras.layers.Dense(_CLASSES, name="logits")(x)
        x = keras.layers.Activation("softmax", dtype="float32", name="probabilities")(x)
        model = keras.Model(images, x, name="resnet18")
        return compile_in(policy, model, loss="sparse_categorical_crossentropy", metrics=["accuracy"])


def load_data() -> DemoData:
    """Return real digits as images of three channels: fewer and smaller where there is no GPU."""
    size = _size()
    x, y = _images(size.train + size.test, size.image)
    description = (
        f"{size.train:,} real handwritten digits to train on and {size.test:,} to test on, brought from 8x8 to "
        f"{size.image}x{size.image} and copied to three channels (UCI Optical Recognition of Handwritten Digits, "
        "CC BY 4.0). They are not ImageNet, but a simpler task for the same model."
    )
    if size is _ON_CPU:
        description += (
            f" There is no GPU here, and on a CPU this is slow: the images are {size.image}x{size.image} instead of "
            f"{_ON_GPU.image}x{_ON_GPU.image}, and the demo stops after {size.train // BATCH_SIZE} steps, too few to "
            "learn."
        )
    return DemoData(description, x[: size.train], y[: size.train], x[size.train :], y[size.train :], size.epochs)


def build_for_bench(
    batch_size: int = BATCH_SIZE, image_size: int | None = None, width: int = _WIDTH
) -> tuple[keras.Model, tf.data.Dataset]:
    """Return the compiled model in Keras' global dtype policy, and four batches of images."""
    image_size = image_size or _size().image
    x, y = _images(4 * batch_size, image_size)
    return build(keras.config.dtype_policy().name, image_size, width), batches(x, y, batch_size)


def _size() -> _Size:
    return _ON_GPU if tf.config.list_physical_devices("GPU") else _ON_CPU


def _images(count: int, size: int) -> tuple[NDArray[np.float32], NDArray[np.integer[Any]]]:
    """Return the first `count` digits, again from the start where there are fewer; pixels in 0..1."""
    digits, labels = load_digits(size, count)
    chosen = np.arange(count) % len(digits)
    gray = digits.astype(np.float32) / np.float32(255)
    return np.repeat(gray[chosen, :, :, None], 3, axis=-1), labels[chosen]


def _convolution(x: keras.KerasTensor, filters: int, size: int, stride: int, name: str) -> keras.KerasTensor:
    """Convolve and normalise, with a ReLU after it."""
    return keras.layers.ReLU(name=f"{name}_relu")(_normalised(x, filters, size, stride, name))


def _normalised(x: keras.KerasTensor, filters: int, size: int, stride: int, name: str) -> keras.KerasTensor:
    convolution = keras.layers.Conv2D(
        filters, size, stride, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv"
    )
    return keras.layers.BatchNormalization(name=f"{name}_norm")(convolution(x))


def _basic_block(x: keras.KerasTensor, filters: int, stride: int, name: str) -> keras.KerasTensor:
    """Two convolutions of 3x3 beside a shortcut, which is a convolution of 1x1 where the shape changes."""
    shortcut = x
    if stride != 1 or x.shape[-1] != filters:
        shortcut = _normalised(x, filters, 1, stride, f"{name}_shortcut")
    x = _convolution(x, filters, 3, stride, f"{name}_1")
    x = _normalised(x, filters, 3, 1, f"{name}_2")
    x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    return keras.layers.ReLU(name=f"{name}_relu")(x)
