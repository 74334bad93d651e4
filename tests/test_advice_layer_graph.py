"""Who feeds whom, through containers and unrecorded layers."""

from __future__ import annotations

from dataclasses import replace

from precscope.advice.layer_graph import LayerGraph
from tests.synthetic_runs import layer


def graph(*layers):
    return LayerGraph(replace(item, order=order) for order, item in enumerate(layers))


BLOCK = graph(
    layer("input"),
    layer("block", "input"),
    layer("block/a", "input"),
    layer("block/b", "block/a"),
    layer("head", "block"),
)


def test_the_consumers_of_a_containers_last_layer_are_those_of_the_container():
    assert BLOCK.consumers("block/a") == ("block/b",)
    assert BLOCK.consumers("block/b") == ("head",)
    assert BLOCK.consumers("block") == ("head",)
    assert BLOCK.outputs() == ("head",)


def test_containers_within_containers():
    nested = graph(layer("a"), layer("a/b"), layer("a/b/c"), layer("d", "a"))
    assert nested.containers["a/b/c"] == ("a/b", "a")
    assert nested.contents == {"a": ("a/b", "a/b/c"), "a/b": ("a/b/c",)}
    assert nested.consumers("a/b/c") == ("d",)
    assert nested.innermost(["a", "a/b/c", "d"]) == ("a/b/c", "d")


def test_a_name_that_only_begins_like_another_is_no_container():
    assert graph(layer("conv"), layer("conv_1"), layer("conv/inner")).contents == {"conv": ("conv/inner",)}


def test_producers_are_looked_up_through_unrecorded_layers_and_cycles():
    looped = graph(
        layer("a"),
        layer("b", "a", "c", unseen="not selected"),
        layer("c", "b", unseen="not selected"),
        layer("d", "c", "gone"),
    )
    assert looped.producers("d") == ("a",)


def test_outputs_without_known_edges_are_the_last_layer_that_ran():
    assert graph(layer("a"), layer("b"), layer("c", unseen="never called")).outputs() == ("b",)
    assert graph(layer("a"), layer("left", "a"), layer("right", "a")).outputs() == ("left", "right")
