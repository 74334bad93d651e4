"""Counting updates that were lost, also where a gradient's shape is not known while the step is traced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from precscope.probes import lost_updates
from precscope.probes.lost_updates import count_lost_updates

if TYPE_CHECKING:
    import pytest


def test_a_gradient_of_unknown_shape_is_counted_as_its_weight_is() -> None:
    before, after = tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.constant([[1.0, 2.5], [3.0, 4.0]])

    @tf.function(input_signature=[tf.TensorSpec(None)])
    def counted(gradient: tf.Tensor) -> tf.Tensor:
        return count_lost_updates([(before, after, gradient), (before, before, tf.zeros([2, 2]))])

    gradient = np.array([[0.5, 1.0], [0.0, np.nan]], np.float32)
    assert counted(gradient).numpy().tolist() == [[3, 2, 0], [0, 0, 0]]


def test_elements_that_an_update_made_non_finite_are_counted() -> None:
    before, gradient = tf.constant([1.0, 2.0, np.inf, 4.0]), tf.ones([4])
    after = tf.constant([np.inf, 2.0, np.nan, np.nan])
    assert count_lost_updates([(before, after, gradient)]).numpy().tolist() == [[4, 1, 2]]


def test_what_is_too_large_to_be_packed_is_counted_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost_updates, "PACKED_LIMIT", 8)
    monkeypatch.setattr(lost_updates, "MOST_PACKED", 3 * 10)
    sizes = [4, 9, 5, 6, 1]  # 9 is too large, and of the others 4, 5 and 1 are all that may be packed
    steps = [(tf.zeros([size]), tf.zeros([size]), tf.ones([size])) for size in sizes]
    assert count_lost_updates(steps).numpy().tolist() == [[size, size, 0] for size in sizes]
