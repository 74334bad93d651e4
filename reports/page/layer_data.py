"""What the page's scripts know of the layers: names and numbers as JSON, arrays as bytes in base64."""

from __future__ import annotations

import base64
import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from precscope.formats import FORMATS, FloatFormat
from precscope.reports.figures.range_map import main_format
from precscope.reports.layer_rows import layer_severities
from precscope.reports.tensor_groups import KINDS, History, TensorGroups, history, tensor_groups
from precscope.reports.text import printable
from precscope.statistics import EXPONENT_MIN, HISTOGRAM_BINS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from precscope.advice import Evidence, Finding
    from precscope.advice.finding import Severity
    from precscope.records import LayerRecord

__all__ = ["layer_data"]

#: Logarithms are stored in steps of 1/128 octave, shares in steps of 1/65,534; the extreme code means "none".
_STEPS_AN_OCTAVE, _SHARE_STEPS = 128, 2**16 - 2
_NO_LOGARITHM, _NO_SHARE = -(2**15), 2**16 - 1


def layer_data(evidence: Evidence, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return layers, tensors, their histograms and their history, ready for JSON."""
    groups = tensor_groups(evidence)
    recorded = evidence.samples[-1].loss_scale if evidence.samples else None
    return {
        "layers": _layers(evidence, findings),
        "tensors": _tensors(groups),
        "histograms": _base64(groups.histograms, "<f4"),
        "history": _history(history(evidence, groups)),
        "formats": {name: _limits(item) for name, item in FORMATS.items()},
        "format": main_format(evidence),
        "lossScale": recorded if recorded and math.isfinite(recorded) else None,
        "bins": HISTOGRAM_BINS,
        "exponentMin": EXPONENT_MIN,
    }


def _layers(evidence: Evidence, findings: Sequence[Finding]) -> list[dict[str, Any]]:
    severities, named, times = layer_severities(findings), _sentences(findings), {}
    for time in evidence.run.layer_times():
        if time.layer is not None:
            times[time.layer] = time
    places = {layer.id: place for place, layer in enumerate(evidence.layers)}
    return [
        {
            "id": layer.id,
            "name": printable(layer.id),
            "type": printable(layer.type),
            "dtype": printable(layer.compute_dtype),
            "policy": printable(layer.policy),
            "path": None if layer.keras_path is None else printable(layer.keras_path),
            "parameters": layer.parameters,
            "inputs": [places[name] for name in layer.inputs if name in places],
            "severity": severities.get(layer.id),
            "findings": named[layer.id],
            "unseen": _unseen(layer),
            "ms": times[layer.id].total_ms if layer.id in times else None,
            "share": times[layer.id].share if layer.id in times else None,
        }
        for layer in evidence.layers
    ]


def _sentences(findings: Sequence[Finding]) -> dict[str, list[tuple[Severity, str]]]:
    sentences = defaultdict(list)
    for finding in findings:
        for name in dict.fromkeys((finding.layer, *finding.consumers)):
            if name is not None:
                sentences[name].append((finding.severity, printable(finding.sentence)))
    return sentences


def _unseen(layer: LayerRecord) -> str | None:
    if layer.unseen is not None:
        return printable(layer.unseen)
    return None if layer.gradient_unseen is None else printable(f"gradient only: {layer.gradient_unseen}")


def _tensors(groups: TensorGroups) -> dict[str, list[Any]]:
    return {
        "layer": groups.layer.tolist(),
        "kind": [KINDS[kind] for kind in groups.kind],
        "dtype": list(groups.dtype),
        "values": groups.totals["count"].tolist(),
        "zeros": groups.totals["zeros"].tolist(),
        "nans": groups.totals["nans"].tolist(),
        "infinities": groups.infinities.tolist(),
        "nonzero": groups.nonzero.tolist(),
        "subnormals": groups.subnormals.tolist(),
        "absmax": _numbers(groups.absmax),
        "smallest": _numbers(groups.smallest),
        "updates": groups.totals["updates"].tolist(),
        "lostUpdates": groups.totals["lost_updates"].tolist(),
        "sampled": groups.is_sampled.tolist(),
    }


def _history(history: History) -> dict[str, Any]:
    shares = np.where(np.isnan(history.subnormal_share), 0, history.subnormal_share)
    return {
        "firstStep": history.first_step.tolist(),
        "lastStep": history.last_step.tolist(),
        "stepsAnOctave": _STEPS_AN_OCTAVE,
        "shareSteps": _SHARE_STEPS,
        "absmax": _base64(_logarithms(history.absmax), "<i2"),
        "smallest": _base64(_logarithms(history.smallest), "<i2"),
        "subnormal": _base64(
            np.where(np.isnan(history.subnormal_share), _NO_SHARE, np.round(shares * _SHARE_STEPS)), "<u2"
        ),
        "nonfinite": _base64(history.has_nonfinite, "u1"),
    }


def _limits(item: FloatFormat) -> dict[str, Any]:
    return {
        "bits": item.bits,
        "max": item.max,
        "smallestNormal": item.smallest_normal,
        "flushLimit": item.flush_limit,
        "overflowLimit": item.overflow_limit,
        "hasInfinity": item.has_infinity,
        "borders": [item.subnormal_exponent_min, item.exponent_min, item.exponent_max + 1],
    }


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _logarithms(values: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        steps = np.round(np.log2(values) * _STEPS_AN_OCTAVE)
    return np.where(np.isfinite(steps), steps, _NO_LOGARITHM)


def _base64(array: ArrayLike, dtype: str) -> str:
    return base64.b64encode(np.asarray(array).astype(dtype).tobytes()).decode("ascii")
