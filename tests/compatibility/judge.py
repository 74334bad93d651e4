"""Judges one configuration: trains it without PrecScope and with it, and compares what came out and what was seen."""

from __future__ import annotations

import re
import tempfile
import time
import traceback
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

import precscope
from precscope.probes.internals.layer_tree import walk_layers
from precscope.probes.keeper import PrecScopeWarning
from tests.compatibility.configuration import Configuration, Training, Unwatched

if TYPE_CHECKING:
    from collections.abc import Iterator

#: How far a training whose every step is sampled may be from one without PrecScope, as a share of the way that its
#: weights went, and the same for its losses as a share of their size. docs/compatibility.md says why.
BOUNDS = {"float32": 2.0**-10, "mixed_float16": 2.0**-4, "mixed_bfloat16": 2.0**-2}

#: Reasons for which every model may have layers that are not recorded.
USUAL_REASONS = re.compile(
    "it only rearranges its input|its output is that of its last layer|its output values are among its input's"
    "|Keras' losses look for the logits behind it"
)
NEVER_SAMPLED = 10**9
#: How much further than trainings without PrecScope from each other one under it may be from them.
NOISE_FACTOR = 4
#: How many more trainings without PrecScope tell how far they are from each other, where it matters.
NOISE_TRAININGS = 3


@dataclass
class Outcome:
    """What one training left behind: losses, weights by name, those at its start where it was built, and its run."""

    losses: np.ndarray
    weights: dict[str, np.ndarray]
    start: dict[str, np.ndarray]
    seconds: float
    run: Any = None
    left_behind: list[str] = field(default_factory=list)
    layers: int = 0
    missed_layers: list[str] = field(default_factory=list)
    trainable: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.weights.keys() - self.start.keys():  # the model was built by its first batch: where it began is unknown
            self.start = {}


def judge(configuration: Configuration, policy: str) -> dict[str, Any]:
    """Train `configuration` without PrecScope, under a session that never samples, and with every step sampled.

    Returns:
        A record for the results' file: `passed`, `faults` (why not), and what was measured.
    """
    start = time.perf_counter()
    record: dict[str, Any] = {"faults": [], "passed": False}
    faults: list[str] = record["faults"]
    try:
        plain = _train(configuration, policy, None)
    except Exception as error:
        if configuration.refused is not None and re.search(configuration.refused, str(error)):
            record |= _refusal(configuration, policy, error)
            return record | {"seconds": round(time.perf_counter() - start, 1)}
        return record | {"faults": [f"does not train without PrecScope: {_short(error)}"], "broken": True}
    if configuration.refused is not None:
        return record | {"faults": [f"trains, though Keras was to say: {configuration.refused}"]}
    faults += _training_faults(plain)
    for name, options in (("idle", {"every": 1, "start": NEVER_SAMPLED}), ("sampled", {"every": 1})):
        try:
            outcome = _train(configuration, policy, options)
        except Exception as error:
            faults.append(f"{name}: fails under PrecScope: {_short(error)}")
            continue
        faults += [f"{name}: {fault}" for fault in outcome.left_behind]
        differences = difference(plain, outcome)
        record |= {f"{name}_{key}": value for key, value in differences.items()}
        if name == "idle":
            faults += _idle_faults(configuration, policy, plain, differences, record)
            continue
        faults += _sampled_faults(configuration, policy, plain, differences, record)
        record |= _coverage(configuration, outcome, faults)
    record |= {"passed": not faults, "seconds": round(time.perf_counter() - start, 1)}
    return record


def _refusal(configuration: Configuration, policy: str, said: Exception) -> dict[str, Any]:
    """Hold what the training raises under PrecScope to what it raises without: the same type, the same words."""
    faults = []
    for name, options in (("idle", {"every": 1, "start": NEVER_SAMPLED}), ("sampled", {"every": 1})):
        try:
            _train(configuration, policy, options)
        except Exception as error:
            if type(error) is not type(said) or str(error) != str(said):
                faults.append(f"{name}: without PrecScope it raises {_short(said)}, with it {_short(error)}")
        else:
            faults.append(f"{name}: trains under PrecScope, and raises {_short(said)} without")
    words = " ".join(re.sub(r"\x1b\[[\d;]*m", "", str(said)).split())  # Keras writes some of it in bold
    found = re.search(rf"[^.]*({configuration.refused})[^.]*", words)
    return {"faults": faults, "passed": not faults, "refused": (found.group() if found else words).strip()}


def _idle_faults(
    configuration: Configuration, policy: str, plain: Outcome, differences: dict[str, Any], record: dict[str, Any]
) -> list[str]:
    """Hold a session that never samples to the last bit, unless two trainings without PrecScope differ as well."""
    if not (differences["weights"] or differences["losses"] or differences["integers"]):
        return []
    again = _noise(configuration, policy, plain, record)
    worse = [key for key in ("weights", "losses") if differences[key] > NOISE_FACTOR * again[key]]
    if differences["integers"] and not again["integers"]:
        worse.append("integers")
    return [f"idle: {key} differ by {differences[key]}, without PrecScope by {again[key]}" for key in worse]


def _sampled_faults(
    configuration: Configuration, policy: str, plain: Outcome, differences: dict[str, Any], record: dict[str, Any]
) -> Iterator[str]:
    """Hold a session that samples every step to the bound, or to what trainings without PrecScope differ by."""
    bound = BOUNDS[policy] * configuration.bound_factor
    for key in ("weights", "losses"):
        if differences[key] <= bound:
            continue
        allowed = max(bound, NOISE_FACTOR * _noise(configuration, policy, plain, record)[key])
        if not differences[key] <= allowed:
            yield f"sampled: {key} differ by {differences[key]:.2g}, more than {allowed:.2g}"
    if differences["integers"]:
        yield f"sampled: counters or seeds differ: {differences['integers'][:3]}"


def _noise(configuration: Configuration, policy: str, plain: Outcome, record: dict[str, Any]) -> dict[str, Any]:
    """Return by how much trainings without PrecScope differ from `plain` at most; measured once, kept in `record`."""
    if "noise" not in record:
        found = [difference(plain, _train(configuration, policy, None)) for _ in range(NOISE_TRAININGS)]
        record["noise"] = {key: max(one[key] for one in found) for key in found[0]}
    noise: dict[str, Any] = record["noise"]
    return noise


def _train(configuration: Configuration, policy: str, options: dict[str, Any] | None) -> Outcome:
    keras.utils.clear_session()
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(17)
    try:
        training = configuration.build()
        start = _weights(training)
        began = time.perf_counter()
        if options is None:
            losses = np.array(training.run(Unwatched()), np.float64)
            return Outcome(losses, _weights(training), start, time.perf_counter() - began)
        return _watched(training, start, options)
    finally:
        keras.config.set_dtype_policy(before)


def _watched(training: Training, start: dict[str, np.ndarray], options: dict[str, Any]) -> Outcome:
    began = time.perf_counter()
    traces = _traces(training)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", PrecScopeWarning)
        quiet: dict[str, Any] = {"profile_steps": 0, "device_interval_s": 0.0}
        path = Path(folder) / "run"
        with precscope.profile(training.model, path, optimizer=training.optimizer, **quiet, **options) as session:
            losses = np.array(training.run(session), np.float64)
        outcome = Outcome(losses, _weights(training), start, time.perf_counter() - began)
        outcome.run = precscope.open_run(path)
        outcome.run.scalars  # noqa: B018 - read before the folder goes
    outcome.left_behind = sorted(_traces(training) - traces)
    reached = {id(layer) for _, layer in walk_layers(training.model)}
    all_layers = training.model._flatten_layers(include_self=False)
    outcome.layers = len(all_layers)
    inputs = keras.layers.InputLayer  # a Sequential hides its own
    missed = [layer for layer in all_layers if id(layer) not in reached and not isinstance(layer, inputs)]
    outcome.missed_layers = [layer.name for layer in missed]
    outcome.trainable = {v.path: v.path in start or not start for v in training.model.trainable_variables}
    return outcome


def _weights(training: Training) -> dict[str, np.ndarray]:
    """Return all variables' values by position and path; empty where the model is not built yet."""
    variables = [v for model in (training.model, *training.others) for v in model.variables]
    return {f"{position} {v.path}": np.array(v.numpy()) for position, v in enumerate(variables)}


def _traces(training: Training) -> set[str]:
    """Return what a session could leave behind on the model and its optimizers."""
    traces = set()
    for model in (training.model, *training.others):
        for layer in model._flatten_layers():
            traces |= {
                f"{layer.name}.{name}"
                for name in ("call", "quantized_call", "train_step", "make_train_function")
                if name in vars(layer)
            }
            for value in vars(layer).values():
                if isinstance(value, keras.optimizers.Optimizer):
                    traces |= {f"{value.name}.{name}" for name in ("apply", "scale_loss") if name in vars(value)}
        if type(getattr(model, "train_function", None)).__name__ == "ChoosingTrainFunction":
            traces.add(f"{model.name}.train_function")
    return traces


def _training_faults(plain: Outcome) -> list[str]:
    faults = []
    if not np.isfinite(plain.losses).all():
        faults.append("the loss is not finite, also without PrecScope")
    if plain.start and way(plain.start, plain.weights) == 0:
        faults.append("no weight moves, also without PrecScope")
    return faults


def way(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
    """Return how far the float weights of `second` are from those of `first`: the norm over all of them.

    NaN at the same place in both is no distance.
    """
    total = 0.0
    for key, value in second.items():
        if np.issubdtype(value.dtype, np.integer) or value.dtype == bool or key not in first:
            continue
        other, own = first[key].astype(np.float64), value.astype(np.float64)
        same = (other == own) | (np.isnan(other) & np.isnan(own))
        total += float(np.sum(np.where(same, 0.0, other - own) ** 2))
    return total**0.5


def difference(plain: Outcome, other: Outcome) -> dict[str, Any]:
    """Compare two trainings: the weights' distance by their way, the losses' by their size, integers that differ."""
    zero = {key: np.zeros_like(value) for key, value in plain.weights.items()}
    went = way(plain.start or zero, plain.weights)
    apart = way(plain.weights, other.weights)
    names = plain.weights.keys() == other.weights.keys()
    losses = np.nan
    if plain.losses.shape == other.losses.shape:
        a, b = plain.losses, other.losses
        losses = float(np.max(np.where(a == b, 0.0, np.abs(a - b)) / np.maximum(1.0, np.abs(a)), initial=0.0))
    integer = [k for k, v in plain.weights.items() if v.dtype.kind in "iub" and k in other.weights]
    return {
        "weights": apart / went if went and names else (0.0 if names and apart == 0 else float("nan")),
        "losses": losses,
        "integers": [key for key in integer if not np.array_equal(plain.weights[key], other.weights[key])],
    }


def _coverage(configuration: Configuration, outcome: Outcome, faults: list[str]) -> dict[str, Any]:
    """Look for layers that are not recorded and do not say why, or say it where it was not to be expected."""
    run = outcome.run
    kinds: dict[str, set[str]] = {}
    for tensor in run.tensors:
        kinds.setdefault(tensor.layer, set()).add(tensor.kind)
    reasons: dict[str, int] = {}
    # In parentheses: the model itself, the batch, code between layers.
    layers = [layer for layer in run.layers if "(" not in layer.id]
    seen = {"activation": 0, "gradient": 0}
    for layer in layers:
        for kind, reason in (("activation", layer.unseen), ("gradient", layer.gradient_unseen)):
            recorded = kind in kinds.get(layer.id, set())
            seen[kind] += recorded
            if recorded == (reason is not None):
                faults.append(f"sampled: {layer.id}: {kind} recorded: {recorded}, and the reason why not: {reason}")
            if reason is not None:
                label = f"{'forward' if kind == 'activation' else 'backward'}: {reason}"
                reasons[label] = reasons.get(label, 0) + 1
                if not _is_expected(configuration, layer.id, reason):
                    faults.append(f"sampled: {layer.id} ({layer.type}): {kind} is unexpectedly not recorded: {reason}")
    faults += _session_faults(configuration, outcome)
    weights = {(t.layer, t.name) for t in run.tensors if t.kind == "weight"}
    gradients = {(t.layer, t.name) for t in run.tensors if t.kind == "weight_gradient"}
    if len(gradients) < len(outcome.trainable) and not configuration.weights_unseen:
        faults.append(f"sampled: gradients of {len(gradients)} of {len(outcome.trainable)} weights are recorded")
    return {
        "layers": len(layers),
        "forward": seen["activation"],
        "backward": seen["gradient"],
        "reasons": reasons,
        "variables": len(outcome.trainable),
        "weights_seen": len(weights),
        "weight_gradients_seen": len(gradients),
        "samples": len(run.samples),
        "loss_scale": run.samples[-1].loss_scale if run.samples else None,
        "updates_counted": sum(int(run.scalars[-1][t.index]["updates"]) > 0 for t in run.tensors) if run.samples else 0,
        "activations": _activation_layers(run),
        "loss_seen": all(sample.loss is not None for sample in run.samples),
        "skipped": run.loss_scales[-1].steps_skipped if run.loss_scales else None,
    }


def _session_faults(configuration: Configuration, outcome: Outcome) -> Iterator[str]:
    """Say what is wrong with the session as a whole."""
    if outcome.missed_layers:
        yield f"sampled: layers that PrecScope does not know of: {outcome.missed_layers[:5]}"
    if not outcome.run.samples:
        yield "sampled: there is no sample"
    for notice in outcome.run.notices:
        expected = configuration.notices is not None and re.search(configuration.notices, notice.message)
        if notice.level != "info" and not expected:
            yield f"sampled: it says: {notice.message[:300]}"


def _activation_layers(run: Any) -> dict[str, dict[str, str | None]]:
    """Return in which dtype the output of each activation layer, and the gradient there, is recorded."""
    found = {}
    for layer in run.layers:
        if layer.id.endswith("_layer"):
            dtypes = {t.kind: t.dtype for t in run.tensors if t.layer == layer.id}
            found[layer.id] = {kind: dtypes.get(kind) for kind in ("activation", "gradient")}
    return found


def _is_expected(configuration: Configuration, layer_id: str, reason: str) -> bool:
    if USUAL_REASONS.search(reason):
        return True
    pairs = configuration.unseen.items()
    return any(re.fullmatch(layers, layer_id) and re.search(words, reason) for layers, words in pairs)


def _short(error: BaseException) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({Path(place.filename).name}:{place.lineno})"
