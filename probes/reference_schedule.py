"""When a reference step is taken, and what is kept of it.

At the start, once a dynamic loss scale has settled, and at the session's end; in between as often as `reference_budget`
pays for. Each takes the batch of the step that was sampled last, with weights and random state as they are then. One
that fails switches reference steps off and is told once; the training goes on as if it had never been.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from precscope.probes.internals.optimizers import growth_counter, multiplier
from precscope.probes.model_records import ModelRecords
from precscope.probes.reference_step import ReferenceStep
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
        self._spent_ns = self._last_cost_ns = 0
        self._off = False
        loop.after_sample = self._after_sample

    def _after_sample(self, sampled: SampledStep) -> None:
        self._sampled = sampled.step
        moment = self._due_moment()
        if moment is not None:
            self._take(moment)

    def at_end(self) -> None:
        """Take the last one, unless one was taken after the last train step."""
        if self._taken and max(self._taken.values()) < self._loop.steps_seen:
            self._take("end")

    def _due_moment(self) -> ReferenceMoment | None:
        if "start" not in self._taken:
            return "start"
        counter = growth_counter(self._optimizer())
        if "settled" not in self._taken and counter is not None and counter >= _SETTLED_STEPS:
            return "settled"
        trained_ns = (self._loop.plain_step_ns or 0.0) * self._loop.steps_seen
        is_paid = self._spent_ns + self._last_cost_ns <= self._options.reference_budget * trained_ns
        return "budget" if is_paid else None

    def _take(self, moment: ReferenceMoment) -> None:
        if self._off or self._sampled is None:
            return
        self._taken[moment] = self._loop.steps_seen
        try:
            reason = self._reason_against()
            if reason is not None:
                self._switch_off(f"no reference step can be taken: {reason}")
                return
            loss_scale = multiplier(self._optimizer())
            batch = self._handout.read_share()
            if batch is not None and 0 < loss_scale < math.inf:  # a scale of 0 leaves nothing to compare
                self._measure(moment, batch, loss_scale)
        except tf.errors.ResourceExhaustedError as error:
            self._switch_off(
                "reference steps are switched off: even a small slice of the batch does not fit into memory twice "
                f"({_in_a_line(error)}). The training goes on; smaller batches or a smaller model on this device do."
            )
        except Exception as error:  # a reference step is never worth a training run
            self._switch_off(
                f"the reference step failed and is switched off: {type(error).__name__}: {_in_a_line(error)} The "
                "training goes on; nothing was changed."
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
        self._last_cost_ns = cost_ns
        if measured.trace_time_ns:  # and TensorFlow optimized the graphs: paid once, so no part of the budget
            self._loop.costs.add("reference_compile", measured.trace_time_ns + cost_ns)
        else:
            self._spent_ns += cost_ns
            self._loop.costs.add("reference", cost_ns)
        if measured.examples != measured.batch:
            message = f"two passes fit into memory for {measured.examples} of a batch's {measured.batch} examples only"
            self._keeper.tell("info", "reference", f"{message}: reference steps work on these.", self._loop.steps_seen)

    def _step(self) -> ReferenceStep:
        step, optimizer = self._handout.step, self._optimizer()
        key = (id(step), id(optimizer))
        if key not in self._steps:
            plans = ModelRecords(self._model, self._options).plans
            self._steps[key] = ReferenceStep(self._model, optimizer, plans, step)
        return self._steps[key]

    def _switch_off(self, message: str) -> None:
        self._off = True
        self._keeper.tell("warning", "reference", message, self._loop.steps_seen or None)


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
    )


def _own_fields(own: TensorErrors) -> dict[str, Any]:
    names = ("reference_nonzero", "flushed", "overflowed", "nans", "relative_error", "sqnr_db", "cosine")
    return {f"own_{name}": getattr(own, name) for name in names}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
