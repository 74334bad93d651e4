"""Proof of an advice: batches of the run, replayed under policies, until the smallest set that passes is known."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from precscope.advice import Evidence, analyze
from precscope.advice.proposal import default_policy, propose_policy
from precscope.advice.suspects import further_layers, layers_beyond, suspected_layers
from precscope.advice.wording import quoted
from precscope.errors import PrecScopeError
from precscope.formats import FORMATS
from precscope.layer_match import match_layers
from precscope.minimal_set import SearchResult, smallest_set
from precscope.policy import MODEL, OptimizerNeeds, Pin, Policy
from precscope.probes.apply_policy import wanted_policies
from precscope.probes.environment import describe_hardware
from precscope.probes.internals.layer_tree import has_named_layers
from precscope.probes.layer_policies import cannot_flip, layer_policies, model_layers, whole_model
from precscope.probes.replay_batches import batches_of_run
from precscope.probes.replayer import Replayer
from precscope.replay import Criterion, JudgedScales, Measured, scales_to_judge
from precscope.verification import Verification

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from precscope.advice.finding import Finding
    from precscope.probes.replay_batches import ReplayData
    from precscope.reader import Run

__all__ = ["verify_model"]

_FOR_FLOAT32 = "mixed_float16"  # what is tested of a run in float32
_MOST_PRICED = 8  # pins whose price is measured one by one; each is one more setting to time
_MOST_ROUNDS_OF_REFERENCE = 4  # each leaves out one more layer that cannot be flipped


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
    took = _Stopwatch()
    with took.part("findings and batches"):
        evidence = Evidence(run)
        findings = analyze(evidence)
        proposal = _proposal(evidence, findings, default)
        optimizer = _usable(model, optimizer)
        setup = _Setup(model, proposal, findings, evidence)
        data = batches_of_run(run, model, dataset, most_batches, of_custom_loop=step is not None)
    criterion = criterion or Criterion.for_policy(proposal.default)
    replayer = Replayer(model, optimizer, step)
    with took.part("float32"):
        setup.set_reference(replayer, data)
    scales = _scales(evidence, proposal.optimizer) if replayer.scales_loss else scales_to_judge(None, None)
    with took.part("as trained"):
        as_trained = setup.as_trained(), _scales_as_trained(evidence, scales, setup.is_trained_in_16_bits)
        before = replayer.measure(*as_trained, criterion)

    with took.part("search"):
        limits = {"most_tests": most_tests, "report": report, "is_over": lambda: took.is_longer_than(most_s)}
        result = _search(setup, replayer, scales, criterion, (as_trained, before), limits)
    setup.note_unflipped(replayer)
    bfloat16 = None
    if proposal.default == "mixed_float16" and result.names != ():
        with took.part("bfloat16"):
            bfloat16 = _measured_in_bfloat16(setup, replayer)
    return _verification(setup, replayer, result, (before, bfloat16), scales, data, criterion, took)


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


@dataclass
class _Setup:
    """The model at hand beside the run: which layers can be tried, and the policies of a set of them.

    Names are the ids of the run; the model may have other numbers in them.
    """

    model: Any
    proposal: Policy
    findings: Sequence[Finding]
    evidence: Evidence

    def __post_init__(self) -> None:
        self._layers = model_layers(self.model)
        classes = {name: type(layer).__name__ for name, layer in self._layers.items() if name != MODEL}
        unpinned = replace(self.proposal, pins=())
        self._here = {MODEL: MODEL, **match_layers(unpinned, classes)}
        self._base = wanted_policies(self.model, unpinned)[0]
        self.in_float32: Mapping[str, str] = {}
        self.left_out: dict[str, str] = {}
        with layer_policies(self.model, self._base):
            self.suspects = self._tryable(self._suspected())
            further = further_layers(self.evidence, self.findings)
            # The policy of a subclassed model casts what is fed to it; that of any other does nothing.
            own = () if has_named_layers(self.model) else (MODEL,)
            self.others = self._tryable([name for name in (*further, *own) if name not in self.suspects])

    @property
    def is_trained_in_16_bits(self) -> bool:
        """Whether the run's layers computed in 16 bits; if not, what is tested is what none of them did yet."""
        return _narrow_format(default_policy(self.evidence)) is not None

    def policies(self, names: frozenset[str]) -> Mapping[str, str]:
        """Return the policies of all layers, by id in the model, with `names` in float32."""
        pins = tuple(Pin(name) for name in sorted(names))
        return wanted_policies(self.model, replace(self.proposal, pins=pins))[0]

    def as_trained(self) -> Mapping[str, str]:
        """Return the policies that the run was trained under; of a run in float32, plainly those to be tested."""
        default = default_policy(self.evidence) if self.is_trained_in_16_bits else self.proposal.default
        return wanted_policies(self.model, replace(self.proposal, pins=(), default=default))[0]

    def in_bfloat16(self) -> Mapping[str, str]:
        """Return the policies of mixed_bfloat16 with nothing pinned."""
        return wanted_policies(self.model, replace(self.proposal, pins=(), default="mixed_bfloat16"))[0]

    def set_reference(self, replayer: Replayer, data: ReplayData) -> None:
        """Replay in float32; what cannot follow keeps its policy and is left out."""
        policies = self._base | whole_model(self.model, "float32")
        for _ in range(_MOST_ROUNDS_OF_REFERENCE):
            known = set(replayer.unflipped)
            try:
                replayer.set_reference(data.batches, policies)
                self.in_float32 = policies
                break
            except PrecScopeError as error:
                raise self._with_what_stays(error, replayer) from None
            except Exception:
                failed = set(replayer.unflipped) - known
                if not failed:
                    raise
                policies = {name: policy for name, policy in policies.items() if name not in failed}
                policies |= {name: self._base[name] for name in failed if name in self._base}
        self.note_unflipped(replayer)

    def _with_what_stays(self, error: PrecScopeError, replayer: Replayer) -> PrecScopeError:
        """Name the layers that compute in 16 bits in the reference too: they may be what is wrong with it."""
        stays = self.left_out | replayer.unflipped
        if not stays:
            return error
        reasons = "; ".join(f"{quoted(name)}: {reason}" for name, reason in list(stays.items())[:3])
        return PrecScopeError(f"{error} Layers that cannot be flipped to float32 may be the cause: {reasons}.")

    def note_unflipped(self, replayer: Replayer) -> None:
        """Leave out layers whose outputs showed that they do not follow their policy."""
        there = {here: name for name, here in self._here.items()}
        for here, reason in replayer.unflipped.items():
            name = there.get(here, here)
            if name in (*self.suspects, *self.others):
                self.left_out[name] = reason
                self.suspects = tuple(other for other in self.suspects if other != name)
                self.others = tuple(other for other in self.others if other != name)

    def _suspected(self) -> tuple[str, ...]:
        """Return the layers to begin with: those that the findings name, and what no layer computed in before."""
        narrow = _narrow_format(self.proposal.default)
        beyond = () if self.is_trained_in_16_bits or narrow is None else layers_beyond(self.evidence, narrow)
        return tuple(dict.fromkeys((*suspected_layers(self.findings), *beyond)))

    def _tryable(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return those that compute in 16 bits and can be flipped; note why others cannot."""
        found = []
        for name in names:
            layer = self._layers[self._here[name]]
            if layer.compute_dtype not in FORMATS or FORMATS[layer.compute_dtype].bits != 16:
                continue
            reason = cannot_flip(layer)
            if reason is None:
                found.append(name)
            else:
                self.left_out[name] = reason
        return tuple(found)


def _proposal(evidence: Evidence, findings: Sequence[Finding], default: str | None) -> Policy:
    """Return what is to be tested: what the findings advise, under the default policy that is asked for."""
    if default is None:
        proposal = propose_policy(evidence, findings)
        return propose_policy(evidence, findings, default=_FOR_FLOAT32) if proposal.default == "float32" else proposal
    if _narrow_format(default) is None:
        raise PrecScopeError(
            f"Cannot test the default policy {default!r}: expected one that computes in 16 bits, mixed_float16 or "
            "mixed_bfloat16. float32 is what it is compared with."
        )
    return propose_policy(evidence, findings, default=default)


def _narrow_format(policy: str) -> str | None:
    """Return the 16-bit format that a dtype policy computes in, by its name; None of any other."""
    computes_in = policy.removeprefix("mixed_")
    return computes_in if computes_in in FORMATS and FORMATS[computes_in].bits == 16 else None


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


def _last_scale(evidence: Evidence) -> float | None:
    looks = [look.loss_scale for look in evidence.run.loss_scales if look.loss_scale is not None]
    samples = [sample.loss_scale for sample in evidence.samples if sample.loss_scale is not None]
    seen = looks or samples
    return seen[-1] if seen else None


def _search(
    setup: _Setup,
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


def _measured_in_bfloat16(setup: _Setup, replayer: Replayer) -> Measured:
    """Return what the whole model does in bfloat16, which needs no loss scale."""
    criterion = Criterion.for_policy("mixed_bfloat16")
    return replayer.measure(setup.in_bfloat16(), scales_to_judge(None, None), criterion)


def _verification(
    setup: _Setup,
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
