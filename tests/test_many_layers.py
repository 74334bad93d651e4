"""What must not grow with the square of the number of layers, counted; `benchmarks/many_layers.py` times it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.many_layers import deep_model
from precscope.options import Options
from precscope.probes import scaling_misuse
from precscope.probes.internals import graphs
from precscope.probes.internals.layer_tree import state_variables, walk_layers
from precscope.probes.lost_updates import count_lost_updates
from precscope.probes.replay import Replay

if TYPE_CHECKING:
    import pytest


def traced_operations(layers: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Return how many operations a fully recorded step has, and how many PrecScope looked at while it was traced."""
    keras.utils.clear_session()
    model = deep_model(layers)
    model.optimizer.build(model.trainable_variables)
    looked_at = 0
    original = graphs.operations_since

    def counting(graph: Any, count: int) -> list[Any]:
        nonlocal looked_at
        found = original(graph, count)
        looked_at += len(found)
        return found

    monkeypatch.setattr("precscope.probes.taps.operations_since", counting)
    replay = Replay(model, model.optimizer)
    replay.run((tf.zeros([2, 4]), tf.zeros([2, 1])), loss_scale=1.0)
    (traced,) = replay._shadow._traced.values()
    (concrete,) = traced.function._list_all_concrete_functions()
    return len(concrete.graph.get_operations()), looked_at


def test_each_layer_adds_the_same_to_a_probed_step(monkeypatch: pytest.MonkeyPatch) -> None:
    (few, seen_few), (more, seen_more), (many, seen_many) = (
        traced_operations(layers, monkeypatch) for layers in (8, 16, 32)
    )
    assert abs(many - more - 2 * (more - few)) <= 40  # up to 64 small tensors share the ops that describe them
    assert seen_many - seen_more == 2 * (seen_more - seen_few)
    assert seen_many < many  # an op is looked at for its own layer alone


def test_gradients_that_share_a_norm_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[Any] = []
    watch = scaling_misuse.ScalingWatch(keras.optimizers.SGD())

    def counting(op: Any) -> bool:
        looked_at.append(op)
        return False

    monkeypatch.setattr(scaling_misuse, "_is_backward", counting)

    def count(gradients: int) -> int:
        looked_at.clear()

        @tf.function
        def step(x: Any) -> Any:
            made = [x * float(number) for number in range(gradients)]
            factor = 1.0 / tf.add_n([tf.reduce_sum(one) for one in made])
            watch.applied([one * factor for one in made])
            assert not watch._clipped
            return x

        step.get_concrete_function(tf.TensorSpec([2]))
        return len(looked_at)

    few, many = count(10), count(40)
    assert few > 10
    assert many < 4 * few + 10


def test_lost_updates_of_alike_weights_are_counted_together() -> None:
    def operations(weights: int) -> int:
        @tf.function
        def counted(x: Any) -> Any:
            return count_lost_updates([(x + 1.0, x, x)] * weights)

        return len(counted.get_concrete_function(tf.TensorSpec([3])).graph.get_operations())

    few, more, many = map(operations, (10, 20, 40))
    assert abs(many - more - 2 * (more - few)) <= 40  # up to 64 small tensors share the ops that describe them
    assert (many - more) / 20 <= 15  # three tensors, each cast, made flat and padded; nothing is counted one by one


def test_mixed_sizes_and_dtypes_keep_their_order() -> None:
    def weight(size: int, dtype: Any) -> tuple[Any, Any, Any]:
        before = tf.zeros([size], dtype)
        return before, before, tf.ones([size], tf.float16 if size == 3 else tf.float32)  # all of it is lost

    sizes = (3, 2000, 5, 3, 2000, 4, 5)
    found = count_lost_updates([weight(s, tf.bfloat16 if n == 3 else tf.float32) for n, s in enumerate(sizes)])
    np.testing.assert_array_equal(found[:, 1], sizes)


def test_a_thousand_layers_in_a_list_have_ids_and_names_of_their_own() -> None:
    class Held(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = [keras.layers.Dense(1, name="same") for _ in range(1000)]
            self.extra = {"0": self.blocks[0], "1": keras.layers.Dense(1, name="same")}

    model = Held()
    ids = [layer_id for layer_id, _ in walk_layers(model)]
    assert len(set(ids)) == len(ids) == 1001
    assert ids[-1] == "extra/1"
    for layer in model._flatten_layers(include_self=False):
        layer.build((None, 1))
    names = [name for name, _ in state_variables(model)]
    assert len(set(names)) == len(names) == 2002
    assert {"same/kernel", "same/kernel:2", "same/kernel:1001"} <= set(names)
    assert Options().selects(ids[0], "Dense")
