"""The real handwritten digits that come with PrecScope (see DIGITS_LICENSE.md), for where MNIST cannot be had."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["load_digits", "resize_bilinear"]

_SOURCE_MAX = 16  # each pixel counts the black ones in a block of 4 x 4


def load_digits(size: int = 28, most: int | None = None) -> tuple[NDArray[np.uint8], NDArray[np.integer[Any]]]:
    """Return the 1,797 digits, or the first `most` of them.

    Images are uint8 [1797, size, size] in 0..255, brought up from 8x8; labels [1797].
    """
    with resources.files("precscope.probes.demos").joinpath("digits.npz").open("rb") as file, np.load(file) as arrays:
        images, labels = arrays["images"][:most], arrays["labels"][:most]
    scaled = resize_bilinear(images.astype(np.float64), size) * (255 / _SOURCE_MAX)
    return np.rint(scaled).astype(np.uint8), labels


def resize_bilinear(images: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Resize square images [n, side, side] to [n, size, size]; the corner pixels stay where they are."""
    side = images.shape[-1]
    positions = np.linspace(0, side - 1, size)
    # Bilinear interpolation is linear along each axis: one matrix [size, side], applied from both sides.
    weights = np.stack([np.interp(positions, np.arange(side), row) for row in np.eye(side)], axis=1)
    return weights @ images @ weights.T
