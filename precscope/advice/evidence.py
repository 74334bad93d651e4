"""What rules look at: a run, with the questions that several rules ask answered once."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from precscope.advice.layer_graph import LayerGraph
from precscope.advice.loss_scale_verdict import SkippedStretch, judge_skips
from precscope.advice.measured import Measured
from precscope.advice.skips import SkipHistory, skip_history
from precscope.advice.sources import Source, backward_sources, forward_sources
from precscope.advice.thresholds import Thresholds
from precscope.loss_scale_history import ScaleHistory, scale_history
from precscope.statistics import HISTOGRAM_BINS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from precscope.reader import Run
    from precscope.records import LayerRecord, RunRecord, SampleRecord, TensorKind, TensorRecord

    Indices = NDArray[np.intp]

__all__ = ["Evidence"]

#: A histogram is read from the file a sample at a time; so many, spread evenly, show a run's shape.
_MOST_HISTOGRAMS = 32


class Evidence:
    """A run as the rules see it.

    Arrays are [samples, tensors] in the order of the run, or [samples] where they concern one layer.

    Attributes:
        run: The run that was read.
        thresholds: Where a number becomes a finding.
        graph: The layers in forward order, and who feeds whom.
    """

    def __init__(self, run: Run, thresholds: Thresholds | None = None):
        self.run = run
        self.thresholds = thresholds or Thresholds()
        self.graph = LayerGraph(run.layers)
        self._fields: dict[str, NDArray[Any]] = {}
        self._histograms: dict[tuple[int, ...], NDArray[np.uint64]] = {}
        self._bad: dict[tuple[TensorKind, str], NDArray[np.bool_]] = {}

    @property
    def record(self) -> RunRecord:
        """The run's own record."""
        return self.run.record

    @property
    def layers(self) -> tuple[LayerRecord, ...]:
        """The layers in forward order."""
        return self.graph.layers

    @property
    def samples(self) -> tuple[SampleRecord, ...]:
        """The sampled steps."""
        return self.run.samples

    @property
    def loss_scaling(self) -> str | None:
        """How the loss is scaled: "dynamic", "static", "none"; None where the run does not tell."""
        return self.record.model.get("loss_scaling")

    @cached_property
    def nonfinite(self) -> NDArray[np.int64]:
        """Infinities and NaN of each tensor at each sample."""
        return self.counts("positive_infinities") + self.counts("negative_infinities") + self.counts("nans")

    @cached_property
    def finite(self) -> NDArray[np.int64]:
        """Finite values, zeros among them."""
        return self.counts("count") - self.nonfinite

    @cached_property
    def nonzero(self) -> NDArray[np.int64]:
        """Finite values that are not zero."""
        return self.finite - self.counts("zeros")

    @cached_property
    def absmax(self) -> NDArray[np.float64]:
        """Largest finite magnitude, NaN where there is no finite value."""
        largest = np.maximum(np.abs(self.values("min")), np.abs(self.values("max")))
        return np.where(self.finite > 0, largest, np.nan)

    def counts(self, field: str) -> NDArray[np.int64]:
        """Return a field of SCALAR_DTYPE that counts."""
        return self._field(field, np.int64)

    def values(self, field: str) -> NDArray[np.float64]:
        """Return a field of SCALAR_DTYPE that measures; without meaning where there is no finite value."""
        return self._field(field, np.float64)

    def total(
        self, counts: NDArray[np.int64], tensors: Sequence[TensorRecord], samples: Indices | slice = slice(None)
    ) -> int:
        """Return the sum of `counts` [samples, tensors] over these tensors and `samples` (all by default)."""
        return int(counts[:, [tensor.index for tensor in tensors]][samples].sum())

    def tensors(self, kind: TensorKind, *, layer: str | None = None, dtype: str | None = None) -> list[TensorRecord]:
        """Return the recorded tensors of a kind; of one layer or dtype only, where named."""
        found = self._tensors[kind, layer] if layer is not None else self.run.tensors
        return [tensor for tensor in found if tensor.kind == kind and dtype in (None, tensor.dtype)]

    def bad(self, kind: TensorKind, layer: str) -> NDArray[np.bool_]:
        """Return [samples]: whether a tensor of this kind and layer held infinities or NaN."""
        key = (kind, layer)
        if key not in self._bad:
            columns = [tensor.index for tensor in self.tensors(kind, layer=layer)]
            self._bad[key] = np.any(self.nonfinite[:, columns] > 0, axis=1)
        return self._bad[key]

    def any_bad(self, kind: TensorKind, layers: Iterable[str] | None = None) -> NDArray[np.bool_]:
        """Return [samples]: whether any of `layers` (all by default) held infinities or NaN."""
        names = [layer.id for layer in self.layers] if layers is None else layers
        bad = np.zeros(len(self.samples), bool)
        for name in names:
            bad |= self.bad(kind, name)
        return bad

    @cached_property
    def forward_finite(self) -> NDArray[np.bool_]:
        """[samples]: whether all recorded activations and weights were finite, so that a fault is a gradient's."""
        return ~(self.any_bad("activation") | self.any_bad("weight"))

    @cached_property
    def skips(self) -> SkipHistory:
        """The skipped steps and the loss scale."""
        return skip_history(self.run.loss_scales, self.samples)

    @cached_property
    def scale_history(self) -> ScaleHistory:
        """When the loss scale moved."""
        model = self.record.model
        return scale_history(
            self.run.loss_scales, model.get("loss_scale_growth_steps"), model.get("initial_loss_scale")
        )

    @cached_property
    def skipped_stretches(self) -> tuple[SkippedStretch, ...]:
        """Why steps were skipped; none without a dynamic loss scale."""
        from precscope.advice.loss_scale_account import sampled_steps

        return judge_skips(self.scale_history, sampled_steps(self)) if self.loss_scaling == "dynamic" else ()

    @property
    def scale_collapsed(self) -> bool:
        """Whether a dynamic loss scale fell so low that it makes small gradients smaller still."""
        lowest = self.skips.lowest_scale
        return self.loss_scaling == "dynamic" and lowest is not None and lowest < self.thresholds.loss_scale_floor

    @cached_property
    def measured(self) -> Measured:
        """What reference steps measured; empty without any."""
        return Measured(self.run.reference_steps, self.run.reference)

    @cached_property
    def float16_gradients(self) -> list[TensorRecord]:
        """The recorded gradients that pass through float16, weight gradients among them: they are cast afterwards."""
        narrow = {layer.id for layer in self.layers if layer.compute_dtype == "float16"}
        own = [tensor for tensor in self.tensors("weight_gradient") if tensor.layer in narrow]
        return self.tensors("gradient", dtype="float16") + own

    @property
    def all_samples(self) -> Indices:
        """Indices of all samples."""
        return np.arange(len(self.samples), dtype=np.intp)

    @cached_property
    def at_current_scale(self) -> Indices:
        """Indices of the samples whose gradients carry the same loss scale as those of the last one."""
        scales = [sample.loss_scale for sample in self.samples]
        return np.array([index for index, scale in enumerate(scales) if scale == scales[-1]], np.intp)

    @cached_property
    def forward_sources(self) -> list[Source]:
        """Where activations first were not finite."""
        return forward_sources(self)

    @cached_property
    def backward_sources(self) -> list[Source]:
        """Where gradients first were not finite while the forward pass was."""
        return backward_sources(self)

    def highest(self, tensors: Sequence[TensorRecord], samples: Indices | slice = slice(None)) -> float | None:
        """Return the largest finite magnitude of these tensors in `samples` (all by default), or None."""
        known = self.absmax[:, [tensor.index for tensor in tensors]][samples]
        known = known[np.isfinite(known)]
        return float(known.max()) if known.size else None

    def histograms(self, samples: Indices) -> NDArray[np.uint64]:
        """Return uint64 [tensors, bins], the sum over at most 32 of these samples, spread evenly."""
        chosen = tuple(int(index) for index in _spread(samples, _MOST_HISTOGRAMS))
        if chosen not in self._histograms:
            none = np.zeros((len(self.run.tensors), HISTOGRAM_BINS), np.uint64)
            self._histograms[chosen] = sum(map(self.run.histograms, chosen), start=none)
        return self._histograms[chosen]

    def step(self, sample: int) -> int:
        """Return the train step of a sample."""
        return self.samples[sample].step

    def _field(self, name: str, dtype: type[Any]) -> NDArray[Any]:
        # Laid out by tensor: rules walk along the samples of one tensor after the other.
        if name not in self._fields:
            self._fields[name] = self.run.scalars[name].astype(dtype, order="F")
        return self._fields[name]

    @cached_property
    def _tensors(self) -> dict[tuple[TensorKind, str], list[TensorRecord]]:
        found: dict[tuple[TensorKind, str], list[TensorRecord]] = defaultdict(list)
        for tensor in self.run.tensors:
            found[tensor.kind, tensor.layer].append(tensor)
        return found


def _spread(samples: Indices, most: int) -> Indices:
    """Return at most `most` of `samples`, the first and the last among them, evenly spread."""
    places = np.linspace(0, max(len(samples) - 1, 0), most).round().astype(np.intp)
    return samples[np.unique(places)] if len(samples) else samples
