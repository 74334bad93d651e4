"""Proof of an advice: batches of the run, replayed under policies, until the smallest set that passes is known."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from precscope.advice import Evidence, analyze
from precscope.advice.proposal import default_policy
from precscope.errors import PrecScopeError
from precscope.minimal_set import SearchResult, smallest_set
from precscope.probes.environment import describe_hardware
from precscope.probes.replay_batches import batches_of_run
from precscope.probes.replayer import Replayer
from precscope.probes.verify_setup import ProofSetup, proposal_to_test
from precscope.replay import Criterion, JudgedScales, Measured, scales_to_judge
from precscope.verification import Verification

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from precscope.policy import OptimizerNeeds
    from precscope.probes.replay_batches import ReplayData
    from precscope.reader import Run

__all__ = ["verify_model"]

_SMALLEST_SHARE = 1 / 32  # of a batch's examples, as in a reference step
_MOST_PRICED = 8  # pins whose price is measured one by one; each is one more setting to time


def verify_model(
    model: Any,
    run: Run,
    *,
    optimizer: Any = None,
    step: Callable[..., Any] | None = None,
    dataset: Any = None,
    default: str | None = None,
    most_batches: int = 3,
    most_tests: int = 60,
    most_s: float | None = None,
    criterion: Criterion | None = None,
    report: Callable[[int, int], None] = lambda done, left: None,
) -> Verification:
    """Return the smallest set of layers in float32 under which replayed batches agree with float32, and its price.

    The model, its optimizer, policies, weights and random states are as before when this returns.

    Args:
        model: The model of the run, built and compiled, or built with `optimizer` given.
        run: The run, whose findings are tested on the batches that it kept.
        optimizer: The optimizer of a custom training loop.
        step: The train step of a custom loop.
        dataset: A tf.data.Dataset to take batches from where the run kept none.
        default: Name of the default dtype policy to test, such as "mixed_bfloat16". By default the run's own; of a run
            in float32, which asks nothing of float32, "mixed_float16".
        most_batches: So many batches are replayed at most: among them those whose step was skipped.
        most_tests: So many sets of layers are tried at most.
        most_s: After so many seconds no further set is tried; None for no limit.
        criterion: What a replay has to show; by default `Criterion.for_policy` of the run's default policy.
        report: Called before each set with the number of those tried and of those left at most.

    Raises:
        PolicyError: The model is not the run's.
        PrecScopeError: There are no batches, or nothing to compare them with.
    """
    asked = _Asked(optimizer, step, dataset, default, most_batches, most_tests, most_s, criterion, report)
    share = 1.0
    while share >= _SMALLEST_SHARE:
        try:
            return _verify(model, run, asked, share)
        except tf.errors.ResourceExhaustedError:
            share /= 2
    raise PrecScopeError(
        f"There is not enough memory to replay batches: even {_SMALLEST_SHARE:.3g} of their examples do not fit, "
        "forward and backward in float32. Nothing was changed. Verify where there is more, or record smaller ones."
    )


@dataclass(frozen=True)
class _Asked:
    """What `verify_model` was asked for; see there."""

    optimizer: Any
    step: Callable[..., Any] | None
    dataset: Any
    default: str | None
    most_batches: int
    most_tests: int
    most_s: float | None
    criterion: Criterion | None
    report: Callable[[int, int], None]


def _verify(model: Any, run: Run, asked: _Asked, share: float) -> Verification:
    """Verify with that share of each batch's examples."""
    took = _Stopwatch()
    with took.part("findings and batches"):
        evidence = Evidence(run)
        findings = analyze(evidence)
        proposal = proposal_to_test(evidence, findings, asked.default)
        optimizer = _usable(model, asked.optimizer)
        setup = ProofSetup(model, proposal, findings, evidence)
        data = _batches(run, model, asked, share)
    criterion = asked.criterion or Criterion.for_policy(proposal.default)
    replayer = Replayer(model, optimizer, asked.step)
    with took.part("float32"):
        setup.set_reference(replayer, data)
    scales = _scales(evidence, proposal.optimizer) if replayer.scales_loss else scales_to_judge(None, None)
    if not setup.is_trained_in_16_bits:
        scales = scales.down_to_the_least()
    with took.part("as trained"):
        as_trained = setup.as_trained(), _scales_as_trained(evidence, scales, setup.is_trained_in_16_bits)
        before = replayer.measure(*as_trained, criterion)
    if _broke_forward(before):  # and would at any loss scale
        scales = scales.down_to_the_least()
        as_trained = as_trained[0], scales

    with took.part("search"):
        limits = {
            "most_tests": asked.most_tests,
            "report": asked.report,
            "is_over": lambda: took.is_longer_than(asked.most_s),
        }
        result = _search(setup, replayer, scales, criterion, (as_trained, before), limits)
    setup.note_unflipped(replayer)
    bfloat16 = None
    if proposal.default == "mixed_float16" and result.names != ():
        with took.part("bfloat16"):
            bfloat16 = _measured_in_bfloat16(setup, replayer)
    return _verification(setup, replayer, result, (before, bfloat16), scales, data, criterion, took)


def _batches(run: Run, model: Any, asked: _Asked, share: float) -> ReplayData:
    data = batches_of_run(run, model, asked.dataset, asked.most_batches, of_custom_loop=asked.step is not None)
    part = data.first_part(share)
    if part is None:
        raise PrecScopeError("There is not enough memory to replay batches, not even one example of each.")
    return part


@dataclass
class _Stopwatch:
    """How long each part of a proof took, in seconds."""

    parts_s: dict[str, float] = field(default_factory=dict)
    _began_s: float = field(default_factory=time.perf_counter)

    def is_longer_than(self, most_s: float | None) -> bool:
        """Tell whether more seconds have passed since it was made; None for no limit."""
        return most_s is not None and time.perf_counter() - self._began_s > most_s

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began_s = time.perf_counter()
        yield
        self.parts_s[name] = time.perf_counter() - began_s


def _usable(model: Any, optimizer: Any) -> Any:
    """Return the optimizer, built; the model is built and has one."""
    if not isinstance(model, keras.Model):
        raise PrecScopeError(f"verify expects the run's keras.Model, received {type(model).__name__}.")
    if not model.built:
        raise PrecScopeError(
            f"Model {model.name!r} is not built, so it has no layers to compare with the run's. Give it a "
            "keras.Input, or call it on a batch before it is returned."
        )
    optimizer = optimizer if optimizer is not None else getattr(model, "optimizer", None)
    if optimizer is None:
        raise PrecScopeError(
            f"Model {model.name!r} is not compiled. Compile it as for the training: the replay needs its loss."
        )
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    return optimizer


def _scales(evidence: Evidence, needs: OptimizerNeeds) -> JudgedScales:
    """Return where the proposed policy has to pass."""
    if evidence.loss_scaling == "static":
        return scales_to_judge(_last_scale(evidence), None, is_dynamic=False)
    if not needs.loss_scale_optimizer:
        return scales_to_judge(None, None)
    settled = _last_scale(evidence) if evidence.loss_scaling == "dynamic" else None
    return scales_to_judge(needs.initial_scale, settled)


def _scales_as_trained(evidence: Evidence, scales: JudgedScales, is_in_16_bits: bool) -> JudgedScales:
    """Return where plain mixed precision is shown: as it was trained, without a scale where it had none."""
    return scales_to_judge(None, None) if evidence.loss_scaling == "none" and is_in_16_bits else scales


def _broke_forward(measured: Measured) -> bool:
    """Tell whether the output or the loss was not finite in a judged replay: the loss scale fell for no gradient."""
    return any(r.cosine is None and not r.overflowed and not r.passed for r in measured.counting)


def _last_scale(evidence: Evidence) -> float | None:
    looks = [look.loss_scale for look in evidence.run.loss_scales if look.loss_scale is not None]
    samples = [sample.loss_scale for sample in evidence.samples if sample.loss_scale is not None]
    seen = looks or samples
    return seen[-1] if seen else None


def _search(
    setup: ProofSetup,
    replayer: Replayer,
    scales: JudgedScales,
    criterion: Criterion,
    known: tuple[Any, Measured],
    limits: dict[str, Any],
) -> SearchResult[Measured]:
    """Return the smallest set that passes; `known` are a setting that was measured before, and what it showed.

    Where the suspects pass together, they say how far the loss scale may fall for a part of them. Layers that join by
    mere growth do not: a lower scale may be a better answer than those.
    """
    together: list[Measured] = []

    def test(names: frozenset[str]) -> Measured:
        setting = setup.policies(names), scales
        if not names and known[0] == setting:
            return known[1]
        where = scales.after(together[0]) if together else scales
        measured = replayer.measure_until_failure(setting[0], where, criterion)
        if measured.passed and names == frozenset(setup.suspects):
            together.append(measured)
        return measured

    return smallest_set(test, setup.suspects, setup.others, **limits)


def _measured_in_bfloat16(setup: ProofSetup, replayer: Replayer) -> Measured:
    """Return what the whole model does in bfloat16, which needs no loss scale."""
    criterion = Criterion.for_policy("mixed_bfloat16")
    return replayer.measure(setup.in_bfloat16(), scales_to_judge(None, None), criterion)


def _verification(
    setup: ProofSetup,
    replayer: Replayer,
    result: SearchResult[Measured],
    besides: tuple[Measured, Measured | None],
    scales: JudgedScales,
    data: ReplayData,
    criterion: Criterion,
    took: _Stopwatch,
) -> Verification:
    proven = result.names is not None
    pins = result.names if result.names is not None else setup.suspects
    settings: dict[str, Mapping[str, str]] = {
        "plain": setup.policies(frozenset()),
        "policy": setup.policies(frozenset(pins)),
        "float32": setup.in_float32,
    }
    without = {pin: setup.policies(frozenset(pins) - {pin}) for pin in pins[:_MOST_PRICED]}
    every = settings | {f"without {pin}": policies for pin, policies in without.items()}
    with took.part("pricing"):
        prices, passes = replayer.price(every, scales.judged[0])
    return Verification(
        proven=proven,
        is_minimal=result.is_minimal,
        default=setup.proposal.default,
        trained=default_policy(setup.evidence),
        pins=pins,
        suspects=setup.suspects,
        left_out=setup.left_out,
        batches=replayer.steps,
        weights=data.weights,
        before=besides[0],
        after=result.measured(pins) if proven else None,
        bfloat16=besides[1],
        trials=len(result.trials),
        criterion=criterion,
        prices={name: prices[name] for name in settings},
        pin_prices={pin: prices["policy"].beside(prices[f"without {pin}"]) for pin in without},
        timed_passes=passes,
        device=_device(),
        unix_s=time.time(),
        took_s=took.parts_s,
        traces=replayer.traces,
        tracing_s=replayer.tracing_s,
    )


def _device() -> str:
    hardware = describe_hardware()
    if tf.config.list_physical_devices("GPU") and hardware["gpus"]:
        return str(hardware["gpus"][0]["name"] or "GPU")
    return f"{hardware['cpu'] or 'CPU'}, {hardware['cpu_count']} cores"
