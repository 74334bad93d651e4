"""Whether several runs did the same work, so that their times can be compared; and which layer is which."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from precscope.reader import Run
    from precscope.run_summary import RunSummary

__all__ = ["Difference", "circumstances", "matched_layers", "work_differences"]

#: Keras counts models and layers of a process: "sequential", "sequential_1", ...
_COUNTER = re.compile(r"_\d+$")


@dataclass(frozen=True)
class Difference:
    """Something in which the runs differ.

    Attributes:
        what: "parameters", "batch", "GPU", ...
        values: As text, one a run; None where a run does not tell.
    """

    what: str
    values: tuple[str | None, ...]


def work_differences(runs: Sequence[Run], summaries: Sequence[RunSummary]) -> tuple[Difference, ...]:
    """Return in what the runs' work differs; empty where they did the same. What a run does not tell is no difference.

    A model or layer whose name differs only by Keras' counter of names is the same.
    """
    found = [
        _difference("model", runs, lambda run: _without_counter(run.record.model.get("name"))),
        _difference("model class", runs, lambda run: run.record.model.get("class")),
        _difference("parameters", runs, lambda run: run.record.model.get("parameters")),
        _difference("optimizer", runs, _optimizer),
        _values_difference("batch", [summary.batch for summary in summaries]),
    ]
    if matched_layers(runs) is None:
        found.append(_layer_difference(runs))
    return tuple(difference for difference in found if difference is not None)


def circumstances(runs: Sequence[Run]) -> tuple[Difference, ...]:
    """Return what else differs and can move times: the machine, versions, XLA."""
    found = [
        _difference("device", runs, _device),
        _difference("XLA (jit_compile)", runs, lambda run: run.record.model.get("jit_compile")),
        _difference("eager execution", runs, lambda run: run.record.model.get("run_eagerly")),
        _difference("TensorFlow", runs, lambda run: run.record.software.get("tensorflow")),
        _difference("Keras", runs, lambda run: run.record.software.get("keras")),
    ]
    return tuple(difference for difference in found if difference is not None)


def matched_layers(runs: Sequence[Run]) -> list[dict[str, str]] | None:
    """Return for each run its layers' ids by those of the first run, or None where the layers are not the same.

    Layers belong together by id or, where the ids differ, by their place in the forward pass, if type and number of
    parameters agree at every place.
    """
    first = runs[0].layers
    matches = []
    for run in runs:
        if {layer.id for layer in run.layers} == {layer.id for layer in first}:
            matches.append({layer.id: layer.id for layer in first})
        elif [_shape(layer) for layer in run.layers] == [_shape(layer) for layer in first]:
            matches.append({layer.id: own.id for layer, own in zip(first, run.layers, strict=True)})
        else:
            return None
    return matches


def _shape(layer: Any) -> tuple[str, int]:
    return layer.type, layer.parameters


def _without_counter(name: Any) -> str | None:
    return None if name is None else _COUNTER.sub("", str(name))


def _optimizer(run: Run) -> Any:
    model = run.record.model
    return model.get("inner_optimizer") or model.get("optimizer")


def _device(run: Run) -> str | None:
    hardware = run.record.hardware
    gpus = [str(gpu.get("name")) for gpu in hardware.get("gpus") or ()]
    return ", ".join(gpus) or hardware.get("cpu")


def _difference(what: str, runs: Sequence[Run], tell: Callable[[Run], Any]) -> Difference | None:
    return _values_difference(what, [tell(run) for run in runs])


def _values_difference(what: str, values: Sequence[Any]) -> Difference | None:
    told = {value for value in values if value is not None}
    if len(told) < 2:
        return None
    return Difference(what, tuple(None if value is None else _text(value) for value in values))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _layer_difference(runs: Sequence[Run]) -> Difference:
    """Name, for each run, layers that the first has not; for the first, such that another lacks."""
    ids = [[layer.id for layer in run.layers] for run in runs]
    lacking = [id for id in ids[0] if any(id not in other for other in ids[1:])]
    extra = [lacking, *([id for id in other if id not in ids[0]] for other in ids[1:])]
    return Difference("layers", tuple(_named(len(own), names) for own, names in zip(ids, extra, strict=True)))


def _named(total: int, names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(names[:most]) + (", ..." if len(names) > most else "")
    return f"{total:,}" + (f" (with {shown})" if shown else "")
