"""Replays batches under dtype policies and compares what the optimizer would receive with float32."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from precscope.error_text import error_in_a_line
from precscope.errors import PrecScopeError
from precscope.formats import FORMATS
from precscope.gradient_noise import Noise, could_be_noise
from precscope.probes.allocator import AllocatorMemory
from precscope.probes.flip_check import watch_flips
from precscope.probes.gradient_numbers import comparison_numbers, noise_numbers
from precscope.probes.internals.graphs import current_graph
from precscope.probes.internals.layer_tree import MODEL_ID, state_variables
from precscope.probes.internals.tf_functions import without_retracing_warning
from precscope.probes.layer_policies import model_layers
from precscope.probes.observed_layers import observed_layers
from precscope.probes.shadow_step import ShadowStep
from precscope.replay import Criterion, JudgedScales, Measured, Replay, VariableComparison, judge_replay
from precscope.spread import spread_of
from precscope.verification import PricedPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from precscope.probes.shadow_step import ShadowResult, ShadowTrace

__all__ = ["ReplayBatch", "Replayer"]

_FINITE = "outputs finite"
_LEAST_PASSES, _MOST_PASSES = 7, 51  # that are timed of each setting: enough for a median and its quartiles
_MOST_TRACED = 16  # steps are kept at once, so that pricing finds most of them traced
_LONGEST_S = 10.0  # no more passes are timed than fit, beyond the least


@dataclass(frozen=True)
class ReplayBatch:
    """A batch to replay.

    Attributes:
        step: The train step that it is of.
        args: What the train step is given.
        kwargs: Likewise.
        weights: Weights and states of seeds to replay it with, in the order of `state_variables`; None
            for those that the model has.
    """

    step: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    weights: Sequence[Any] | None = None


@dataclass(frozen=True)
class _Reference:
    """A batch, and what it gave in float32."""

    batch: ReplayBatch
    result: ShadowResult


@dataclass
class _Tried:
    """One setting of policies, traced once."""

    step: ShadowStep
    casts: int | None = None
    unflipped: Mapping[str, str] = field(default_factory=dict)


class Replayer:
    """Runs forward and backward passes of `model` on kept batches; the model stays as it is.

    Args:
        model: A built Keras model.
        optimizer: Its optimizer, built.
        step: The train step, where it is not `model.train_step`.

    Attributes:
        unflipped: Why layers did not follow a policy that was set, by id.
        skipped: Steps of batches that cannot be compared, for they are not finite in float32 either.
        traces: How often the step was traced.
        tracing_s: How long that took, in seconds.
    """

    def __init__(self, model: Any, optimizer: Any, step: Callable[..., Any] | None = None) -> None:
        self.unflipped: dict[str, str] = {}
        self.skipped: list[int] = []
        self.traces, self.tracing_s = 0, 0.0
        self._model = model
        self._optimizer = optimizer
        self._step = step
        self._references: list[_Reference] = []
        self._reference_policies: Mapping[str, str] = {}
        self._tried: dict[frozenset[tuple[str, str]], _Tried] = {}
        # Their graphs go with the replayer.
        self._numbers = without_retracing_warning(tf.function(comparison_numbers, autograph=False))
        self._noise_numbers = without_retracing_warning(tf.function(noise_numbers, autograph=False))

    @property
    def scales_loss(self) -> bool:
        """Whether the step multiplies its loss by a loss scale; a custom loop may not."""
        return all(reference.result.loss is not None for reference in self._references)

    @property
    def steps(self) -> tuple[int, ...]:
        """The train steps whose batches are compared."""
        return tuple(reference.batch.step for reference in self._references)

    def set_reference(self, batches: Sequence[ReplayBatch], policies: Mapping[str, str]) -> None:
        """Replay `batches` under the policies that the others are compared with: float32.

        Raises:
            PrecScopeError: No batch gives finite gradients, or the step hands no gradients to its optimizer.
        """
        self._references, self.skipped = [], []
        self._reference_policies = policies
        for batch in batches:
            result = self._run(self._step_for(policies), batch, 1.0)
            if not result.gradients:
                raise PrecScopeError(
                    "The train step was replayed, but no gradient reached its optimizer in a way that can be followed. "
                    "Verify a model that is trained with fit, or whose step calls optimizer.apply_gradients itself."
                )
            comparisons = self._compare(result, result)
            if all(item.finite for item in comparisons) and any(item.norm_reference > 0 for item in comparisons):
                self._references.append(_Reference(batch, result))
            else:
                self.skipped.append(batch.step)
        if not self._references:
            raise PrecScopeError(
                f"None of the {len(batches)} batches gives finite gradients in float32 (steps "
                f"{', '.join(map(str, self.skipped))}), so there is nothing to compare with. The weights are lost or "
                "the data is not finite: verify with weights from before."
            )

    def measure(self, policies: Mapping[str, str], scales: JudgedScales, criterion: Criterion) -> Measured:
        """Replay every batch at every loss scale under `policies`, by layer id, and judge it."""
        return self._measure(policies, scales, criterion, until_failure=False)

    def measure_until_failure(
        self, policies: Mapping[str, str], scales: JudgedScales, criterion: Criterion
    ) -> Measured:
        """Return what `measure` does where all pass, and otherwise no more than what it took to see that they do not.

        Most sets of a search fail, and of those it is of no interest by how much.
        """
        return self._measure(policies, scales, criterion, until_failure=True)

    def _measure(
        self, policies: Mapping[str, str], scales: JudgedScales, criterion: Criterion, until_failure: bool
    ) -> Measured:
        judged: list[Replay] = []
        most_fallen = 0
        for scale in scales.judged:
            found, fallen = self._at(policies, scale, criterion, scales.may_fall, until_failure)
            judged += found
            most_fallen = max(most_fallen, fallen)
            if until_failure and not all(replay.passed for replay in found):
                return Measured(tuple(judged), len(judged))
        informing = [replay for scale in scales.informing for replay in self._at(policies, scale, criterion)[0]]
        return Measured((*judged, *informing), len(judged), most_fallen)

    def _at(
        self,
        policies: Mapping[str, str],
        scale: float,
        criterion: Criterion,
        may_fall: int = 0,
        until_failure: bool = False,
    ) -> tuple[list[Replay], int]:
        """Replay every batch at `scale`, or at the first lower one at which all pass, where gradients overflow.

        Return that with the number of halvings. Where none is found: what is wrong at the scale at which nothing
        overflows any more, which says more than that a higher one is too high; else what is wrong at `scale`.
        """
        first: list[Replay] = []
        for fallen in range(may_fall + 1):
            replays = self._all_at(policies, scale / 2**fallen, criterion, until_failure)
            first = first or replays
            if all(replay.passed for replay in replays):
                return replays, fallen
            if not any(replay.overflowed for replay in replays):
                return replays, 0
        return first, 0

    def _all_at(
        self, policies: Mapping[str, str], scale: float, criterion: Criterion, until_failure: bool
    ) -> list[Replay]:
        """Replay the batches at `scale`, in the order of the training, all or until one fails."""
        replays = []
        for reference in self._references:
            replays.append(self._replay(policies, reference, scale, criterion))
            if until_failure and not replays[-1].passed:
                break
        return replays

    def price(self, settings: Mapping[str, Mapping[str, str]], scale: float) -> tuple[dict[str, PricedPolicy], int]:
        """Time passes of the first batch under each of the settings, by name, in turn, so that drifts hit all alike.

        Return what each costs, and how many passes of each were timed. Each is traced and has run before it is timed.
        The time holds what a replay saves and restores; that is the same for all of them.
        """
        batch = self._references[0].batch
        times_ms: dict[str, list[float]] = {name: [] for name in settings}
        peaks = dict.fromkeys(settings, 0)
        memory = AllocatorMemory("GPU:0" if tf.config.list_physical_devices("GPU") else "CPU:0")
        for policies in settings.values():
            self._run(self._step_for(policies), batch, scale)
        with self._weights_of(batch):
            began_s = time.perf_counter()
            for done in range(_MOST_PASSES):
                if done >= _LEAST_PASSES and time.perf_counter() - began_s > _LONGEST_S:
                    break
                for name, policies in settings.items():
                    memory.reset()
                    start_ns = time.perf_counter_ns()
                    result = self._step_for(policies).run(*batch.args, loss_scale=scale, **batch.kwargs)
                    _wait_for(result)
                    times_ms[name].append((time.perf_counter_ns() - start_ns) / 1e6)
                    peaks[name] = max(peaks[name], (memory.read() or (0, 0))[1])
        prices = {
            name: _priced(times_ms[name], peaks[name], self._tried[_key(policies)].casts)
            for name, policies in settings.items()
        }
        return prices, min(map(len, times_ms.values()))

    def _replay(self, policies: Mapping[str, str], reference: _Reference, scale: float, criterion: Criterion) -> Replay:
        batch = reference.batch
        try:
            result = self._run(self._step_for(policies), batch, scale)
        except tf.errors.ResourceExhaustedError:
            raise
        except Exception as error:  # a custom layer that takes no mix of dtypes: a set that does not work
            why_not = f"the step failed under it: {error_in_a_line(error, 200)}"
            return Replay(batch.step, scale, False, why_not, None, None, None, None, None, reference.result.loss)

        def judged(comparisons: Sequence[VariableComparison]) -> Replay:
            return judge_replay(
                comparisons,
                step=batch.step,
                loss_scale=scale,
                loss=result.loss,
                loss_reference=reference.result.loss,
                outputs_finite=bool(result.kept.get(_FINITE, True)),
                criterion=criterion,
            )

        comparisons = self._compare(reference.result, result)
        replay = judged(comparisons)
        if replay.passed or not could_be_noise(comparisons, criterion):
            return replay
        return judged(self._with_noise(comparisons, policies, reference, result))

    def _with_noise(
        self,
        comparisons: Sequence[VariableComparison],
        policies: Mapping[str, str],
        reference: _Reference,
        result: ShadowResult,
    ) -> Sequence[VariableComparison]:
        """Run the other batches at the weights of `reference` too, and say how gradients and their errors scatter.

        It takes two more passes a batch, and no tracing: both steps are traced.
        """
        others = [other for other in self._references if other is not reference]
        if not others:
            return comparisons
        expected, given = [reference.result], [result]
        for other in others:
            batch = replace(other.batch, weights=reference.batch.weights)
            expected.append(self._run(self._step_for(self._reference_policies), batch, 1.0))
            given.append(self._run(self._step_for(policies), batch, result.loss_scale))
        keys = [key for key in reference.result.gradients if key in result.gradients]
        scales = tf.constant([1.0, result.loss_scale], tf.float64)
        numbers = self._noise_numbers(
            *([[r.gradients[key] for key in keys] for r in rs] for rs in (expected, given)), scales
        )
        return [
            replace(item, noise=Noise(*map(float, row))) for item, row in zip(comparisons, numbers.numpy(), strict=True)
        ]

    def _compare(self, reference: ShadowResult, result: ShadowResult) -> list[VariableComparison]:
        """Compare unscaled gradients, all variables in one call: one by one they would take longer than a replay."""
        keys = [key for key in reference.gradients if key in result.gradients]
        if not keys:
            return []
        numbers = self._numbers(
            [reference.gradients[key] for key in keys],
            [result.gradients[key] for key in keys],
            tf.constant([reference.loss_scale, result.loss_scale], tf.float64),
        ).numpy()
        return [
            VariableComparison(key.layer, key.name, float(dot), float(norm_reference), float(norm), bool(finite))
            for key, (dot, norm_reference, norm, finite) in zip(keys, numbers, strict=True)
        ]

    def _run(self, step: ShadowStep, batch: ReplayBatch, scale: float) -> ShadowResult:
        traces, trace_time_ns = step.traces, step.trace_time_ns
        with self._weights_of(batch):
            result = step.run(*batch.args, loss_scale=scale, **batch.kwargs)
        self.traces += step.traces - traces
        self.tracing_s += (step.trace_time_ns - trace_time_ns) / 1e9
        return result

    def _step_for(self, policies: Mapping[str, str]) -> ShadowStep:
        key = _key(policies)
        if key not in self._tried:
            while len(self._tried) >= _MOST_TRACED:  # a graph of a large model takes its room; the eldest goes
                kept = (key, _key(self._reference_policies))
                del self._tried[next(name for name in self._tried if name not in kept)]
            self._tried[key] = tried = _Tried(
                ShadowStep(
                    self._model,
                    self._optimizer,
                    self._step,
                    policies,
                    taps=lambda trace: self._watched(tried, trace),
                )
            )
        return self._tried[key].step

    @contextmanager
    def _watched(self, tried: _Tried, trace: ShadowTrace) -> Iterator[None]:
        """Look at the outputs of model and layers while a step is traced, and count its casts at the end."""
        finite = []

        def observe(key: Any, call: int, tensor: Any) -> None:
            if key.kind == "activation":
                finite.append(tf.reduce_all(tf.math.is_finite(tensor)))
                trace.keep(_FINITE, tf.reduce_all(tf.stack(finite)))

        layers = model_layers(self._model)
        with ExitStack() as stack:
            watch = stack.enter_context(watch_flips(layers))
            stack.callback(lambda: self.unflipped.update(watch.unflipped))
            stack.enter_context(observed_layers({MODEL_ID: self._model}, trace, observe))
            yield
            tried.casts = _count_casts(current_graph())

    @contextmanager
    def _weights_of(self, batch: ReplayBatch) -> Iterator[None]:
        """Give the model the weights that the batch was kept with, and its own ones back."""
        if batch.weights is None:
            yield
            return
        variables = [variable for _, variable in state_variables(self._model)]
        before = [tf.identity(variable.value) for variable in variables]
        try:
            for variable, value in zip(variables, batch.weights, strict=True):
                variable.assign(value)
            yield
        finally:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)


def _key(policies: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(policies.items())


def _count_casts(graph: Any) -> int:
    """Return how many operations of the step, outside loops, cast from one floating-point dtype to another."""
    casts = (op for op in graph.get_operations() if op.type == "Cast")
    return sum(op.inputs[0].dtype.name in FORMATS and op.outputs[0].dtype.name in FORMATS for op in casts)


def _wait_for(result: ShadowResult) -> None:
    """Return when the device has computed the gradients."""
    tf.add_n([tf.cast(tf.reshape(gradient, [-1])[0], tf.float32) for gradient in result.gradients.values()]).numpy()


def _priced(times_ms: Sequence[float], peak_bytes: int, casts: int | None) -> PricedPolicy:
    spread = spread_of(times_ms)
    memory_mib = peak_bytes / 2**20 if peak_bytes else None
    if spread is None:
        return PricedPolicy(None, None, memory_mib, casts)
    return PricedPolicy(spread.median, (spread.upper_quartile - spread.lower_quartile) / 2, memory_mib, casts)
