"""Where the values of a run's worst layers lie, at the last sample: the exponent pictures of the live view."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from precscope.formats import FORMATS
from precscope.reports.exponent_picture import Cell, draw

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from precscope.reader import Run
    from precscope.records import TensorKind
    from precscope.run_tail import RunTail

__all__ = ["LayerPictures", "PictureBook"]

#: The share of one core that reading histograms may take: those of a large model are read less often.
_SHARE = 0.002
_OCTAVES = 2
_MOST_LAYERS = 20


@dataclass(frozen=True)
class LayerPictures:
    """The exponent pictures of one layer, two octaves to a cell: empty where nothing was finite, None if not recorded.

    Attributes:
        step: The sampled step.
        output: Of the layer's outputs.
        gradient: Of the gradients that arrive there, as the loss scale multiplies them.
    """

    step: int
    output: tuple[Cell, ...] | None
    gradient: tuple[Cell, ...] | None


class PictureBook:
    """Reads the histograms of the last sample, seldom enough to cost next to nothing.

    Args:
        cpu_clock: CPU time of this process in seconds.
    """

    def __init__(self, cpu_clock: Callable[[], float] = time.process_time) -> None:
        self._cpu_clock = cpu_clock
        self._pictures: dict[str, LayerPictures] = {}
        self._seen = 0
        self._next_s = 0.0

    def look(self, tail: RunTail, layers: Sequence[str], now_s: float, is_last: bool = False) -> None:
        """Draw these layers at the last sample, if it is new and it is time.

        Args:
            tail: The run.
            layers: Their ids, the first few of which are drawn.
            now_s: A monotonic time in seconds.
            is_last: Whether no sample will come any more.
        """
        seen = sum(worker.samples.seen for worker in tail.workers)
        if seen == self._seen or (now_s < self._next_s and not is_last) or tail.is_behind:
            return
        start_s = self._cpu_clock()
        run = tail.recent_run(1)
        self._pictures = {id: _pictures(run, id) for id in layers[:_MOST_LAYERS]}
        self._seen = seen
        self._next_s = now_s + (self._cpu_clock() - start_s) / _SHARE

    def of(self, layer: str) -> LayerPictures | None:
        """Return the pictures of a layer; None where they were not drawn."""
        return self._pictures.get(layer)


def _pictures(run: Run, layer: str) -> LayerPictures:
    return LayerPictures(run.samples[-1].step, _picture(run, layer, "activation"), _picture(run, layer, "gradient"))


def _picture(run: Run, layer: str, kind: TensorKind) -> tuple[Cell, ...] | None:
    """Return the picture of a layer's tensors of one kind; of the narrowest format where there are several."""
    tensors = run.find(layer=layer, kind=kind)
    if not tensors:
        return None
    narrowest = min((tensor.dtype for tensor in tensors), key=lambda dtype: FORMATS[dtype].bits)
    columns = [tensor.index for tensor in tensors if tensor.dtype == narrowest]
    # The last sample of each worker.
    histograms = [run.histograms(sample)[columns].sum(axis=0) for sample in range(len(run.samples))]
    histogram = np.sum(histograms, axis=0)
    scalars = run.scalars[:, columns]
    infinities = int(scalars["positive_infinities"].sum() + scalars["negative_infinities"].sum())
    if not histogram.any() and (infinities or int(scalars["nans"].sum())):
        return ()
    return tuple(draw(histogram.tolist(), FORMATS[narrowest], _OCTAVES, infinities))
