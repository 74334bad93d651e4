"""The reference step: one batch, forward and backward, in float32 and in the training's policy, tensor by tensor.

Two shadow steps (`precscope.probes.shadow_step`) from the same state. The first runs in float32 and hands out what each
layer computed; the second, under the policies that the training has, compares with that as it goes.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import tensorflow as tf

from precscope.errors_between import TensorErrors
from precscope.probes.batch_slices import examples_in, first_examples
from precscope.probes.internals.tf_functions import without_retracing_warning
from precscope.probes.layer_twins import Part, ReferencePass
from precscope.probes.observed_layers import observed_layers
from precscope.probes.shadow_step import ShadowStep
from precscope.probes.tensor_errors import error_sums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from precscope.probes.batch_handout import Batch
    from precscope.probes.reading import TensorKey
    from precscope.probes.shadow_step import ShadowTrace
    from precscope.probes.tap_plan import TapPlan

__all__ = ["ErrorsOfTensor", "ReferenceMeasurement", "ReferenceStep", "free_host_bytes"]

#: A slice of fewer examples than this share of the batch says little about it.
_SMALLEST_SHARE = 1 / 32
#: What a pass needs beside the tensors that it hands out: as much again for what it does not hand out, and to compare.
_MEMORY_FACTOR = 2.5


@dataclass(frozen=True)
class ErrorsOfTensor:
    """What a reference step measured of one tensor; None where something was not.

    Attributes:
        key: The tensor.
        whole: Errors in the training's policy.
        own: Errors that the layer makes from the float32 input; see `precscope.reference_records`.
        inherited: Errors of the policy's tensor against the layer's own; their squares are relative to `whole`.
        rounded: Errors of the layer in float32 that gets the float32 input rounded to the training's format.
    """

    key: TensorKey
    whole: TensorErrors
    own: TensorErrors | None
    inherited: TensorErrors | None
    rounded: TensorErrors | None = None


@dataclass(frozen=True)
class ReferenceMeasurement:
    """What one reference step measured.

    Attributes:
        examples: Examples that it worked on; None where the batch has no dimension of examples.
        batch: Examples in the batch.
        loss_scale: What multiplied the loss.
        loss_reference: Loss in float32; None where the step does not show it.
        loss_policy: Loss in the training's policy.
        tensors: In the order in which the float32 pass met them.
        left_out: Layers that could not be run in float32, or whose twin failed, with the reason, by id.
        uneven_draws: Kinds of random ops whose numbers are not the same in both passes.
        trace_time_ns: What tracing the passes took; 0 where they were traced before.
    """

    examples: int | None
    batch: int | None
    loss_scale: float
    loss_reference: float | None
    loss_policy: float | None
    tensors: tuple[ErrorsOfTensor, ...]
    left_out: dict[str, str]
    uneven_draws: tuple[str, ...]
    trace_time_ns: int


class ReferenceStep:
    """Runs reference steps of one model.

    Args:
        model: A built model.
        optimizer: Its optimizer, built.
        plans: What is to be recorded of each layer, by id.
        step: A custom loop's train step; by default `model.train_step`.
        free_bytes: Returns the bytes that both passes may take together; None to try, and take less where that fails,
            which a GPU's memory allows and a host's does not.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        plans: dict[str, TapPlan],
        step: Callable[..., Any] | None = None,
        free_bytes: Callable[[], float | None] | None = None,
    ) -> None:
        self._free_bytes = free_bytes or _free_bytes
        self._layers = {plan.id: plan.layer for plan in plans.values()}
        self._pass = ReferencePass(model, plans)
        self._reference = ShadowStep(model, optimizer, step, policies=self._pass.policies, taps=self._pass.taps)
        self._policy = ShadowStep(model, optimizer, step, taps=self._compared)
        self._parts: list[Part] = []
        self._examples: int | None = None  # that were found to fit, where the batch does not
        self._compare_gradients = without_retracing_warning(tf.function(_stacked_errors, autograph=False))

    def measure(self, batch: Batch, loss_scale: float) -> ReferenceMeasurement:
        """Run both passes on the batch, or on as much of it as fits into memory.

        Raises:
            tf.errors.ResourceExhaustedError: Even a small slice does not fit.
            Exception: Whatever the step raises. Nothing is changed.
        """
        size = examples_in((batch.args, batch.kwargs))
        traced_ns = self._trace_time_ns()
        examples = size if size is None or self._examples is None else min(size, self._examples)
        while True:
            try:
                if size is not None and examples is not None:
                    examples = self._examples = self._fitting(batch, size, examples, loss_scale)
                return self._measure(batch, size, examples, loss_scale, traced_ns)
            except tf.errors.ResourceExhaustedError:
                if size is None or examples is None or examples // 2 < max(size * _SMALLEST_SHARE, 1):
                    raise
                examples = self._examples = examples // 2

    def _fitting(self, batch: Batch, size: int, examples: int, loss_scale: float) -> int:
        """Return how many examples fit into the memory that may be taken."""
        free_bytes = self._free_bytes()
        if free_bytes is None:
            return examples
        part = _sliced(batch, size, examples)
        needed = _MEMORY_FACTOR * self._reference.kept_bytes(*part.args, loss_scale=loss_scale, **part.kwargs)
        fitting = int(examples * min(1.0, free_bytes / max(needed, 1.0)))
        if fitting < max(size * _SMALLEST_SHARE, 1):
            raise tf.errors.ResourceExhaustedError(
                None,
                None,
                f"two passes on {examples} examples need about {needed / 2**20:,.0f} MiB of memory, and "
                f"{free_bytes / 2**20:,.0f} MiB may be taken",
            )
        return fitting

    def _measure(
        self, batch: Batch, size: int | None, examples: int | None, loss_scale: float, traced_ns: int
    ) -> ReferenceMeasurement:
        part = batch if size is None or examples is None else _sliced(batch, size, examples)
        reference = self._reference.run(*part.args, loss_scale=loss_scale, **part.kwargs)
        kept: dict[Any, Any] = reference.kept
        self._parts = [name for name in kept if name.what in ("reference", "twin")]
        extra = [kept[name] for name in self._parts]
        policy = self._policy.run(*part.args, loss_scale=loss_scale, extra=extra, **part.kwargs)
        sums = kept | policy.kept | self._weight_gradients(reference, policy)
        return ReferenceMeasurement(
            examples=examples,
            batch=size,
            loss_scale=loss_scale,
            loss_reference=reference.loss,
            loss_policy=policy.loss,
            tensors=tuple(_tensor_errors(sums)),
            left_out=dict(self._pass.left_out),
            uneven_draws=self._policy.uneven_draws,
            trace_time_ns=self._trace_time_ns() - traced_ns,
        )

    def _trace_time_ns(self) -> int:
        return self._reference.trace_time_ns + self._policy.trace_time_ns

    @contextmanager
    def _compared(self, trace: ShadowTrace) -> Iterator[None]:
        """Compare each tensor of the pass in the training's policy with that of the float32 pass."""
        kept = dict(zip(self._parts, trace.extra, strict=True))

        def observe(key: TensorKey, call: int, tensor: Any) -> None:
            reference, twin = (kept.get(Part(what, key, call)) for what in ("reference", "twin"))
            if reference is not None:
                trace.keep(Part("whole", key, call), error_sums(reference, tensor))
            if twin is not None:
                trace.keep(Part("inherited", key, call), error_sums(twin, tensor))

        with ExitStack() as stack:
            stack.enter_context(observed_layers(self._layers, trace, observe, losses=True))
            yield

    def _weight_gradients(self, reference: Any, policy: Any) -> dict[Part, Any]:
        pairs, names = [], []
        for key, gradient in policy.gradients.items():
            for what, other in (
                ("whole", reference.gradients.get(key)),
                ("inherited", reference.kept.get(Part("twin", key, 0))),
            ):
                if other is not None:
                    names.append(Part(what, key, 0))  # type: ignore[arg-type]  # a literal of the line above
                    pairs.append((other, gradient))
        return dict(zip(names, self._compare_gradients(pairs), strict=True)) if pairs else {}


def free_host_bytes() -> int:
    """Return the host's memory that can be had without swapping; what runs out there is not given back."""
    return int(psutil.virtual_memory().available)


def _free_bytes() -> float | None:
    return None if tf.config.list_physical_devices("GPU") else free_host_bytes()


def _stacked_errors(pairs: Sequence[tuple[Any, Any]]) -> list[Any]:
    return [error_sums(reference, other) for reference, other in pairs]


def _tensor_errors(sums: dict[Part, Any]) -> Iterator[ErrorsOfTensor]:
    """Add up the calls of each tensor."""
    names = [name for name in sums if name.what in ("own", "whole", "inherited", "rounded")]
    values = tf.stack([sums[name] for name in names]).numpy() if names else ()
    added: dict[TensorKey, dict[str, TensorErrors]] = {}
    for name, numbers in zip(names, values, strict=True):
        of_key = added.setdefault(name.key, {})
        of_key[name.what] = of_key.get(name.what, TensorErrors()) + TensorErrors.from_sums(numbers)
    for key, found in added.items():
        if "whole" in found:
            yield ErrorsOfTensor(key, found["whole"], found.get("own"), found.get("inherited"), found.get("rounded"))


def _sliced(batch: Batch, size: int, examples: int) -> Any:
    """Return the first examples of the batch: of every tensor whose first dimension is the batch's."""
    return batch if examples == size else type(batch)(*first_examples((batch.args, batch.kwargs), size, examples))
