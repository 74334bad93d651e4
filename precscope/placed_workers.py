"""The workers of one run put together: where each one's samples and tensors stand, and their arrays merged.

Workers train in step, so samples of one step are parts of one: their counts are added, their minima and maxima are
over all. Arrays are read in small chunks and added up, so that what is kept does not grow with the number of workers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from precscope.merged_scalars import ScalarSum
from precscope.records import SCALAR_DTYPE
from precscope.statistics import HISTOGRAM_BINS

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from numpy.typing import NDArray

    from precscope.records import CostRecord, LayerRecord, NoticeRecord, SampleRecord, StepTimeRecord, TensorRecord
    from precscope.replica_records import ReplicaSample
    from precscope.worker import Worker

__all__ = [
    "PlacedWorkers",
    "device_names",
    "merged_costs",
    "merged_notices",
    "merged_step_times",
    "place_workers",
]


@dataclass(frozen=True)
class _PlacedWorker:
    """A worker, and the positions in the run of each of its samples and tensors."""

    worker: Worker
    samples: NDArray[np.intp]
    tensors: NDArray[np.intp]


@dataclass(frozen=True)
class PlacedWorkers:
    """Workers whose samples and tensors have their places in a run.

    Attributes:
        layers: In the order of the forward pass.
        tensors: By index.
        samples: By index, in the order of the steps.
    """

    layers: tuple[LayerRecord, ...]
    tensors: tuple[TensorRecord, ...]
    samples: tuple[SampleRecord, ...]
    _placed: tuple[_PlacedWorker, ...]

    def scalars(self) -> NDArray[np.void]:
        """Return SCALAR_DTYPE [samples, tensors] of all workers together."""
        if len(self._placed) == 1:
            return self._placed[0].worker.scalars()
        total = ScalarSum((len(self.samples), len(self.tensors)))
        for placed in self._placed:
            for first, scalars in placed.worker.scalar_chunks():
                samples = placed.samples[first : first + len(scalars)]
                total.add(scalars, at=_block(samples, placed.tensors))
        return total.result()

    def histograms(self, sample: int) -> NDArray[np.uint64]:
        """Return uint64 [tensors, HISTOGRAM_BINS] of one sample."""
        histograms = np.zeros((len(self.tensors), HISTOGRAM_BINS), np.uint64)
        for placed, own in self._holding(sample):
            histograms[placed.tensors] += placed.worker.histograms(own)
        return histograms

    def total_histograms(self) -> NDArray[np.uint64]:
        """Return uint64 [tensors, HISTOGRAM_BINS]: the sum over all samples that were ever taken."""
        totals = np.zeros((len(self.tensors), HISTOGRAM_BINS), np.uint64)
        for placed in self._placed:
            totals[placed.tensors] += placed.worker.total_histograms()
        return totals

    def replica_samples(self, sample: int) -> tuple[ReplicaSample, ...]:
        """Return what each replica computed in a sample, by its number; their scalars are those of all tensors."""
        found = []
        for placed, own in self._holding(sample):
            for replica in placed.worker.replica_samples(own):
                scalars = np.zeros(len(self.tensors), SCALAR_DTYPE)
                scalars[placed.tensors] = replica.scalars
                found.append(replace(replica, scalars=scalars))
        return tuple(sorted(found, key=lambda replica: replica.replica))

    def _holding(self, sample: int) -> Iterable[tuple[_PlacedWorker, int]]:
        """Give the workers that took a sample, and its number there."""
        for placed in self._placed:
            own = int(np.searchsorted(placed.samples, sample))
            if own < len(placed.samples) and placed.samples[own] == sample:
                yield placed, own


def place_workers(workers: Sequence[Worker]) -> PlacedWorkers:
    """Put the workers' records together: layers by id, tensors by layer, kind and name, samples by step."""
    layers: dict[str, LayerRecord] = {}
    tensors: dict[Hashable, TensorRecord] = {}
    columns = []
    for worker in workers:
        for layer in worker.layers:
            layers.setdefault(layer.id, layer)
        keys = _tensor_keys(worker.tensors)
        for key, tensor in zip(keys, worker.tensors, strict=True):
            tensors.setdefault(key, replace(tensor, index=len(tensors)))
        columns.append(np.array([tensors[key].index for key in keys], np.intp))
    samples, places = _merge_samples(workers)
    return PlacedWorkers(
        tuple(sorted(layers.values(), key=lambda layer: (layer.order, layer.id))),
        tuple(tensors.values()),
        samples,
        tuple(map(_PlacedWorker, workers, places, columns)),
    )


def _merge_samples(workers: Sequence[Worker]) -> tuple[tuple[SampleRecord, ...], list[NDArray[np.intp]]]:
    """Return the run's samples, and for each worker where its own stand among them."""
    if len(workers) == 1:
        alone = workers[0].samples
        renumbered = tuple(replace(item, index=index) for index, item in enumerate(alone))
        return renumbered, [np.arange(len(alone), dtype=np.intp)]
    parts: dict[tuple[int, int], list[tuple[SampleRecord, int]]] = {}
    keys = [_sample_keys(worker.samples) for worker in workers]
    for worker, own in zip(workers, keys, strict=True):
        replicas = max(len(worker.replicas), 1)
        for key, sample in zip(own, worker.samples, strict=True):
            parts.setdefault(key, []).append((sample, replicas))
    indices = {key: index for index, key in enumerate(sorted(parts))}
    samples = tuple(_merged_sample(index, parts[key]) for key, index in indices.items())
    return samples, [np.array([indices[key] for key in own], np.intp) for own in keys]


def _sample_keys(samples: Sequence[SampleRecord]) -> list[tuple[int, int]]:
    """Return what names each sample in every worker: its step, and which of the samples of that step it is."""
    seen: Counter[int] = Counter()
    keys = []
    for sample in samples:
        keys.append((sample.step, seen[sample.step]))
        seen[sample.step] += 1
    return keys


def _merged_sample(index: int, parts: Sequence[tuple[SampleRecord, int]]) -> SampleRecord:
    """Return one sample of parts that workers took of the same step, each with its number of replicas."""
    first = parts[0][0]
    losses = [(sample.loss, replicas) for sample, replicas in parts if sample.loss is not None]
    applied = {sample.applied for sample, _ in parts if sample.applied is not None}
    return replace(
        first,
        index=index,
        time_unix_s=max(sample.time_unix_s for sample, _ in parts),
        # As a plain mean: `fit` takes the mean over replicas, also where the last ones had fewer examples.
        loss=sum(loss * count for loss, count in losses) / sum(count for _, count in losses) if losses else None,
        applied=first.applied if len(applied) < 2 else None,
        step_time_ns=max(sample.step_time_ns for sample, _ in parts),
        allocator_current_bytes=_most([sample.allocator_current_bytes for sample, _ in parts]),
        allocator_peak_bytes=_most([sample.allocator_peak_bytes for sample, _ in parts]),
    )


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _tensor_keys(tensors: Sequence[TensorRecord]) -> list[Hashable]:
    """Return what names each tensor in every worker; one that a new trace added again is another tensor."""
    seen: Counter[Hashable] = Counter()
    keys: list[Hashable] = []
    for tensor in tensors:
        name = (tensor.layer, tensor.kind, tensor.name)
        keys.append((*name, seen[name]))
        seen[name] += 1
    return keys


def _block(rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Any:
    """Return the index of rows times columns; slices where they can be, which are faster by far."""
    as_slices = [_as_slice(rows), _as_slice(columns)]
    return tuple(as_slices) if None not in as_slices else np.ix_(rows, columns)


def _as_slice(places: NDArray[np.intp]) -> slice | None:
    if not len(places):
        return slice(0)
    start, stop = int(places[0]), int(places[-1]) + 1
    return slice(start, stop) if stop - start == len(places) and (np.diff(places) == 1).all() else None


def merged_costs(workers: Sequence[Worker]) -> tuple[CostRecord, ...]:
    """Return what PrecScope cost one worker, on average: workers pay at the same time."""
    sums: dict[str, CostRecord] = {}
    for cost in [cost for worker in workers for cost in worker.costs]:
        sum_ = sums.get(cost.kind, replace(cost, count=0, time_ns=0))
        sums[cost.kind] = replace(sum_, count=sum_.count + cost.count, time_ns=sum_.time_ns + cost.time_ns)
    return tuple(
        replace(cost, count=-(-cost.count // len(workers)), time_ns=round(cost.time_ns / len(workers)))
        for cost in sums.values()
    )


def merged_step_times(workers: Sequence[Worker]) -> tuple[StepTimeRecord, ...]:
    """Return the time of plain steps, which all workers make together, with the batch of all."""
    times = next((worker.step_times for worker in workers if worker.step_times), ())
    return tuple(replace(item, batch=None if item.batch is None else item.batch * len(workers)) for item in times)


def device_names(workers: Sequence[Worker]) -> dict[tuple[int, str], str]:
    """Return what to call each worker's devices, by its position and the device's own id."""
    return {
        (position, device.id): device.id if position == 0 else f"{device.id} (worker {worker.number})"
        for position, worker in enumerate(workers)
        for device in worker.devices
    }


def merged_notices(workers: Sequence[Worker]) -> tuple[NoticeRecord, ...]:
    """Return what the workers had to say: once what all say, else with the worker's number."""
    if len(workers) == 1:
        return workers[0].notices
    said = Counter(message for worker in workers for message in {notice.message for notice in worker.notices})
    notices: dict[str, NoticeRecord] = {}
    for worker in workers:
        for notice in worker.notices:
            by_all = said[notice.message] == len(workers)
            message = notice.message if by_all else f"worker {worker.number}: {notice.message}"
            notices.setdefault(message, replace(notice, message=message))
    return tuple(notices.values())
