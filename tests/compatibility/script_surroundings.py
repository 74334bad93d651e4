"""What a public example script looks for outside itself: its data sets at their shapes, and a dtype policy.

All of it comes from folders that environment variables name, so that the script stays as it was published:
`KERAS_HOME` holds the data where Keras would have downloaded them to, and `PYTHONPATH` leads to a `sitecustomize` that
sets the policy, and has Keras take the made data although its checksums are others.
"""

from __future__ import annotations

import gzip
import os
import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["environment", "make_data"]

TEST_IMAGES = 500  # the published test set has 10,000
REVIEWS = 640
REVIEW_WORDS = 200
VOCABULARY = 20_000


def make_data(home: Path, images: int) -> None:
    """Write MNIST, Fashion-MNIST and IMDB as Keras keeps them, small and made up.

    Args:
        home: What `KERAS_HOME` names.
        images: How many images there are to train with; the published sets have 60,000.
    """
    datasets = home / "datasets"
    (datasets / "fashion-mnist").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    (x_train, y_train), (x_test, y_test) = (_digits(rng, count) for count in (images, TEST_IMAGES))
    np.savez(datasets / "mnist.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    for name, pictures, labels in (("train", x_train, y_train), ("t10k", x_test, y_test)):
        _write_idx(datasets / "fashion-mnist" / f"{name}-images-idx3-ubyte.gz", pictures)
        _write_idx(datasets / "fashion-mnist" / f"{name}-labels-idx1-ubyte.gz", labels)
    (x_train, y_train), (x_test, y_test) = (_reviews(rng) for _ in range(2))
    np.savez(datasets / "imdb.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def _digits(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `count` noisy images, uint8 of shape (count, 28, 28), with a bar at a height that their label tells."""
    labels = rng.integers(0, 10, count, dtype=np.uint8)
    images = rng.integers(0, 50, (count, 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[5 + label : 12 + label, 4:24] += 200
    return images, labels


def _write_idx(path: Path, array: np.ndarray) -> None:
    """Write uint8 in the format of the MNIST files: a magic number that tells the rank, the shape, the bytes."""
    with gzip.open(path, "wb") as file:
        file.write(struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape) + array.tobytes())


def _reviews(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return lists of word indices, which one word of each tells to be good or bad, and labels of 0 and 1."""
    labels = rng.integers(0, 2, REVIEWS)
    words = np.empty(REVIEWS, dtype=object)
    for index, label in enumerate(labels):
        length = int(rng.integers(REVIEW_WORDS // 4, 2 * REVIEW_WORDS))
        words[index] = [*rng.integers(10, VOCABULARY, length).tolist(), 8 + int(label)]
    return words, labels


#: Runs when Python starts. Keras is still loaded by the script, after it has set what Keras reads then.
_SITECUSTOMIZE = """
import os, sys
from importlib.util import find_spec

class AfterKeras:
    busy = False

    def find_spec(self, name, path=None, target=None):
        if name != "keras" or self.busy:
            return None
        self.busy = True
        try:
            spec = find_spec(name)
        finally:
            self.busy = False
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            sys.modules["keras.src.utils.file_utils"].validate_file = lambda *_, **__: True
            if policy := os.environ.get("PUBLIC_SCRIPTS_POLICY"):
                module.config.set_dtype_policy(policy)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, AfterKeras())
"""


def environment(
    home: Path, folder: Path, policy: str, extra: list[str], limits: dict[str, int | None]
) -> dict[str, str]:
    """Return the environment for a script.

    Args:
        home: The folder of `make_data`.
        folder: Where `sitecustomize.py` is written.
        policy: The name of a Keras dtype policy.
        extra: Folders with packages that the script imports and that are not installed.
        limits: Values of `KERAS_MAX_EPOCHS` and `KERAS_MAX_STEPS_PER_EPOCH`, by which Keras cuts a training short.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE, encoding="utf-8")
    found = {**os.environ, "KERAS_HOME": str(home), "KERAS_BACKEND": "tensorflow", "MPLBACKEND": "agg"}
    found |= {"PYTHONPATH": os.pathsep.join([str(folder), *extra]), "PUBLIC_SCRIPTS_POLICY": policy}
    found |= {name: str(value) for name, value in limits.items() if value is not None}
    return found | {"TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3")}
