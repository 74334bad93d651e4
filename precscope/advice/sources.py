"""Where infinities and NaN begin: sources, told from the layers that merely pass them on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from precscope.advice.evidence import Evidence
    from precscope.records import TensorKind

__all__ = ["Source", "backward_sources", "forward_sources"]


@dataclass(frozen=True)
class Source:
    """A layer where something non-finite begins.

    Attributes:
        layer: Its id.
        samples: Indices of the samples in which it is a source; never empty.
        saw_input: Whether what it was given was recorded, so that it is known to have been finite.
    """

    layer: str
    samples: NDArray[np.intp]
    saw_input: bool = True


def forward_sources(evidence: Evidence) -> list[Source]:
    """Return the layers whose output was not finite although their inputs and weights were, first in time first.

    A layer that does not tell its inputs counts as a source only if nothing before it was bad.
    """
    graph, sources = evidence.graph, []
    bad_before = np.zeros(len(evidence.samples), bool)
    for layer in evidence.layers:
        producers = graph.producers(layer.id)
        bad = evidence.bad("activation", layer.id)
        inherited = evidence.any_bad("activation", producers) if producers else bad_before
        inside = evidence.any_bad("activation", graph.contents.get(layer.id, ()))
        begins = np.flatnonzero(bad & ~inherited & ~inside & ~evidence.bad("weight", layer.id))
        if len(begins):
            sources.append(Source(layer.id, begins, saw_input=bool(producers)))
        if layer.id not in graph.contents:
            bad_before = bad_before | bad
    return sorted(sources, key=lambda source: int(source.samples[0]))


def backward_sources(evidence: Evidence) -> list[Source]:
    """Return the layers where the gradient was first not finite while all activations and weights were.

    In each sample that is the layer nearest the loss, by the gradient that arrives at its output; where all of those
    are finite, by the gradients of its own weights.
    """
    found: dict[str, list[int]] = {}
    arriving = _nearest_the_loss(evidence, "gradient")
    own = _nearest_the_loss(evidence, "weight_gradient")
    for sample in np.flatnonzero(evidence.forward_finite):
        layer = arriving[sample] or own[sample]
        if layer is not None:
            found.setdefault(layer, []).append(int(sample))
    return sorted(
        (Source(layer, np.array(samples, np.intp)) for layer, samples in found.items()),
        key=lambda source: int(source.samples[0]),
    )


def _nearest_the_loss(evidence: Evidence, kind: TensorKind) -> list[str | None]:
    """Return, for each sample, the last layer in forward order whose gradient is bad; the innermost of several."""
    nearest: list[str | None] = [None] * len(evidence.samples)
    for layer in evidence.layers:
        if layer.id in evidence.graph.contents:
            continue
        for sample in np.flatnonzero(evidence.bad(kind, layer.id)):
            nearest[sample] = layer.id
    return nearest
