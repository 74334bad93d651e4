"""When a reference step is taken, and what is kept of it.

At the start, once a dynamic loss scale has settled, and at the session's end; in between as often as `reference_budget`
pays for. Where nobody asked for them (`reference="auto"`), only as far as `ReferenceBudget` finds them cheap. Each
takes the batch of the step that was sampled last, with weights and random state as they are then. One that fails
switches reference steps off and is told once; the training goes on as if it had never been.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Literal

import tensorflow as tf

from precscope.error_text import error_in_a_line, failure_in_a_line
from precscope.formats import FORMATS
from precscope.probes.allocator import AllocatorMemory
from precscope.probes.internals.layer_tree import walk_layers
from precscope.probes.internals.optimizers import growth_counter, multiplier
from precscope.probes.model_records import ModelRecords
from precscope.probes.reference_step import ReferenceStep, free_host_bytes
from precscope.reference_budget import ReferenceBudget
from precscope.reference_records import ReferenceMoment, ReferenceRecord, ReferenceStepRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from precscope.errors_between import TensorErrors
    from precscope.options import Options
    from precscope.probes.batch_handout import Batch, BatchHandout
    from precscope.probes.keeper import Keeper
    from precscope.probes.reference_step import ErrorsOfTensor, ReferenceMeasurement
    from precscope.probes.sampling_loop import SampledStep, SamplingLoop

__all__ = ["ReferenceSchedule", "reference_records_of"]

#: So many finite steps in a row, and the loss scale has found its place: a search that begins too high fails each step.
_SETTLED_STEPS = 20
#: Of what a GPU's allocator has left between two steps, the training's activations gone: enough stays for what is not
#: counted, and no attempt is made that would fail and fragment the memory.
_SHARE_OF_FREE = 0.5


class ReferenceSchedule:
    """Takes reference steps in a session.

    Args:
        model: The model that is trained.
        optimizer: Returns its optimizer.
        options: What is recorded, and the budget.
        loop: Counts the steps; tells of each sampled one.
        keeper: Writes the run.
        handout: Holds the batch of the last sampled step.
        clock_ns: A monotonic clock.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Callable[[], Any],
        options: Options,
        loop: SamplingLoop,
        keeper: Keeper,
        handout: BatchHandout,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._options = options
        self._loop = loop
        self._keeper = keeper
        self._handout = handout
        self._clock_ns = clock_ns
        self._steps: dict[tuple[int, int], ReferenceStep] = {}  # by the train step and the optimizer
        self._taken: dict[ReferenceMoment, int] = {}  # the number of steps seen, at the last of each
        self._sampled: int | None = None
        self._is_asked_for = options.reference is True
        self._budget = ReferenceBudget(options.reference_budget, self._is_asked_for)
        self._start_ns = clock_ns()
        self._off = False
        loop.after_sample = self._after_sample

    def _after_sample(self, sampled: SampledStep) -> None:
        is_first, self._sampled = self._sampled is None, sampled.step
        if self._off:
            return
        self._budget.compiled(self._loop.costs.totals.get("compile", [0, 0])[1])
        moment: ReferenceMoment = "start" if is_first else "settled" if self._has_settled() else "budget"
        if self._allows(moment):
            self._take(moment)

    def at_end(self) -> None:
        """Take the last one, unless one was taken after the last train step; none where no step was sampled."""
        if self._off or self._sampled is None or max(self._taken.values(), default=0) >= self._loop.steps_seen:
            return
        if self._allows("end"):
            self._take("end")
        elif not self._budget.taken:
            self._keeper.tell("info", "reference", self._why_too_dear(), self._loop.steps_seen)

    def _has_settled(self) -> bool:
        """Tell whether the loss scale has settled, and no reference step was taken for that yet."""
        if "settled" in self._taken:
            return False
        counter = growth_counter(self._optimizer())
        return counter is not None and counter >= _SETTLED_STEPS

    def _allows(self, moment: ReferenceMoment) -> bool:
        trained_ns = (self._loop.plain_step_ns or 0.0) * self._loop.steps_seen
        return self._budget.allows(moment, self._session_ns(), trained_ns)

    def _session_ns(self) -> int:
        return self._clock_ns() - self._start_ns

    def _why_too_dear(self) -> str:
        return (
            f"no reference step was taken: the first was expected to take {self._budget.expected_ns / 1e9:.0f} s, "
            f"judged by what compiling the probed step took, and the whole session took {self._session_ns() / 1e9:.0f} "
            "s. reference=True (precscope run --set reference=true) takes it in any case."
        )

    def _take(self, moment: ReferenceMoment) -> None:
        try:
            if not self._is_asked_for and not _has_16_bits(self._model):
                return  # nothing to measure, and nothing to say about it: the policy may still change
            self._taken[moment] = self._loop.steps_seen
            reason = self._reason_against()
            if reason is not None:
                self._switch_off(
                    f"no reference step can be taken: {reason}", "warning" if self._is_asked_for else "info"
                )
                return
            loss_scale = multiplier(self._optimizer())
            batch = self._handout.read_share()
            if batch is not None and 0 < loss_scale < math.inf:  # a scale of 0 leaves nothing to compare
                self._measure(moment, batch, loss_scale)
        except tf.errors.ResourceExhaustedError as error:
            self._switch_off(
                "reference steps are switched off: even a small slice of the batch does not fit into memory twice "
                f"({error_in_a_line(error, 400)}). The training goes on; smaller batches or a smaller model on this "
                "device do."
            )
        except Exception as error:  # a reference step is never worth a training run
            self._switch_off(
                f"the reference step failed and is switched off: {failure_in_a_line(error, 400)}. The training goes "
                "on; nothing was changed."
            )

    def _reason_against(self) -> str | None:
        """Return why the train step cannot be run beside the training, or None."""
        step = self._handout.step
        if self._handout.failure is not None:
            return f"{self._handout.failure}."
        if step is not None and not hasattr(step, "python_function"):
            return (
                "the train step is a plain Python function, and running it once more would repeat what it does beside "
                "the training. Make it a tf.function."
            )
        if step is not None and int(self._model.distribute_strategy.num_replicas_in_sync) > 1:
            return (
                "the train step of a custom loop runs all replicas of its strategy, and a reference step runs one "
                "alone. Train with `fit` for that."
            )
        if step is None and self._model.run_eagerly:
            return (
                "the model was compiled with run_eagerly=True, and running its Python code once more would repeat what "
                "it does beside the training. Compile it without."
            )
        return None

    def _measure(self, moment: ReferenceMoment, batch: Batch, loss_scale: float) -> None:
        start_ns = self._clock_ns()
        measured = self._step().measure(batch, loss_scale)
        cost_ns = max(self._clock_ns() - start_ns - measured.trace_time_ns, 0)
        assert self._sampled is not None
        step, records = reference_records_of(self._sampled, moment, measured, cost_ns)
        self._keeper.write(lambda writer: writer.add_reference(step, records))
        if (replicas := int(self._model.distribute_strategy.num_replicas_in_sync)) > 1:
            message = f"reference steps run on what the first of {replicas} replicas is given of the batch"
            self._keeper.tell("info", "reference", f"{message}, as that replica alone.", self._loop.steps_seen)
        self._budget.spent(cost_ns, measured.trace_time_ns)
        if measured.trace_time_ns:  # and TensorFlow optimized the graphs
            self._loop.costs.add("reference_compile", measured.trace_time_ns + cost_ns)
        else:
            self._loop.costs.add("reference", cost_ns)
        if measured.examples != measured.batch:
            message = f"two passes fit into memory for {measured.examples} of a batch's {measured.batch} examples only"
            self._keeper.tell("info", "reference", f"{message}: reference steps work on these.", self._loop.steps_seen)

    def _step(self) -> ReferenceStep:
        step, optimizer = self._handout.step, self._optimizer()
        key = (id(step), id(optimizer))
        if key not in self._steps:
            plans = ModelRecords(self._model, self._options).plans
            self._steps[key] = ReferenceStep(self._model, optimizer, plans, step, self._free_bytes)
        return self._steps[key]

    def _free_bytes(self) -> float | None:
        """Return what two passes may take; on a GPU that somebody wants them on, let them try."""
        if not tf.config.list_physical_devices("GPU"):
            return free_host_bytes()
        if self._is_asked_for:
            return None
        free_bytes = AllocatorMemory("GPU:0").free()
        return None if free_bytes is None else _SHARE_OF_FREE * free_bytes

    def _switch_off(self, message: str, level: Literal["info", "warning"] = "warning") -> None:
        self._off = True
        self._keeper.tell(level, "reference", message, self._loop.steps_seen or None)


def _has_16_bits(model: Any) -> bool:
    """Tell whether a layer computes in 16 bits, so that float32 would be something else."""
    dtypes = {layer.compute_dtype for _, layer in walk_layers(model)}
    return any(dtype in FORMATS and FORMATS[dtype].bits == 16 for dtype in dtypes)


def reference_records_of(
    step: int, moment: ReferenceMoment, measured: ReferenceMeasurement, time_ns: int
) -> tuple[ReferenceStepRecord, list[ReferenceRecord]]:
    """Return the records of what a reference step measured.

    Args:
        step: The train step whose batch it was.
        moment: Why then.
        measured: What it measured.
        time_ns: What it cost.
    """
    uneven = ", ".join(measured.uneven_draws)
    record = ReferenceStepRecord(
        step=step,
        moment=moment,
        examples=measured.examples,
        batch=measured.batch,
        loss_scale=measured.loss_scale,
        loss_reference=measured.loss_reference,
        loss_policy=measured.loss_policy,
        random=f"not equal: {uneven}" if uneven else "equal: drawn in float32 in both passes",
        compiled=False,
        time_ns=time_ns,
        left_out=tuple(f"{layer}: {reason}" for layer, reason in measured.left_out.items()),
    )
    return record, [_record(step, moment, tensor, measured.loss_scale) for tensor in measured.tensors]


def _record(step: int, moment: ReferenceMoment, tensor: ErrorsOfTensor, loss_scale: float) -> ReferenceRecord:
    whole, own, inherited = tensor.whole, tensor.own, tensor.inherited
    is_gradient = tensor.key.kind != "activation"
    norm = math.sqrt(whole.reference_squares) / (loss_scale if is_gradient else 1.0)
    return ReferenceRecord(
        step=step,
        moment=moment,
        layer=tensor.key.layer,
        kind=tensor.key.kind,
        name=tensor.key.name,
        count=whole.count,
        reference_nonzero=whole.reference_nonzero,
        reference_norm=_finite(norm) if whole.compared else None,
        flushed=whole.flushed,
        overflowed=whole.overflowed,
        nans=whole.nans,
        relative_error=whole.relative_error,
        sqnr_db=whole.sqnr_db,
        cosine=whole.cosine,
        inherited_relative_error=(
            whole.relative_error
            if tensor.key.kind == "gradient"
            else None
            if inherited is None
            else inherited.error_relative_to(whole)
        ),
        **{} if own is None else _own_fields(own),
        rounded_input_relative_error=None if tensor.rounded is None else tensor.rounded.relative_error,
    )


def _own_fields(own: TensorErrors) -> dict[str, Any]:
    names = ("reference_nonzero", "flushed", "overflowed", "nans", "relative_error", "sqnr_db", "cosine")
    return {f"own_{name}": getattr(own, name) for name in names}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
