"""A run as tables of plain columns: what is exported as CSV and Parquet."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from precscope.advice import analyze
from precscope.device_records import DeviceInfo, DeviceSample
from precscope.layer_time import LayerTime
from precscope.lint_result import LintFinding
from precscope.op_records import OpRecord
from precscope.origin_records import OriginRecord
from precscope.records import (
    SCALAR_DTYPE,
    CostRecord,
    LayerRecord,
    LossScaleRecord,
    NoticeRecord,
    SampleRecord,
    StepTimeRecord,
    TensorRecord,
)
from precscope.reference_records import ReferenceRecord, ReferenceStepRecord
from precscope.replica_records import ReplicaRecord
from precscope.statistics import EXPONENT_MIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from precscope.reader import Run

__all__ = ["TABLES", "Column", "Table", "run_table"]

ColumnType = Literal["int", "float", "bool", "text"]


@dataclass(frozen=True)
class Column:
    """One column: an array, or a list in which None is absent; in an array `absent` says where a value is."""

    name: str
    type: ColumnType
    values: Sequence[Any] | NDArray[Any]
    absent: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Table:
    """A name and columns of one length."""

    name: str
    columns: tuple[Column, ...]


def run_table(run: Run, name: str) -> Table:
    """Return the table of `run` called `name`, one of TABLES.

    Lists and mappings are JSON text. NaN is a value (a loss that was not a number); absence is absent.
    """
    return Table(name, tuple(_MAKERS[name](run)))


def _records(type: type[Any], of: Callable[[Run], Sequence[Any]]) -> Callable[[Run], Iterator[Column]]:
    def make(run: Run) -> Iterator[Column]:
        records = of(run)
        for field in dataclasses.fields(type):
            kind = _column_type(str(field.type))
            values = [getattr(record, field.name) for record in records]
            yield Column(field.name, kind, list(map(_text, values)) if kind == "text" else values)

    return make


def _column_type(annotation: str) -> ColumnType:
    """Return the column type of a record's field from its annotation ("int | None")."""
    found = re.fullmatch(r"(int|float|bool)(?: \| None)?", annotation)
    return found[1] if found else "text"  # type: ignore[return-value]


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, default=str)


def _statistics(run: Run) -> Iterator[Column]:
    """Give a row for each tensor and sample in which it was recorded, in the order of time."""
    scalars = run.scalars
    samples, tensors = np.nonzero(scalars["count"])
    found = scalars[samples, tensors]
    yield Column("sample", "int", samples)
    yield Column("step", "int", np.array([sample.step for sample in run.samples], np.int64)[samples])
    yield Column("tensor", "int", tensors)
    for name in ("layer", "kind"):
        known = [getattr(tensor, name) for tensor in run.tensors]
        yield Column(name, "text", [known[tensor] for tensor in tensors])
    absent = _without_meaning(found)
    for name in SCALAR_DTYPE.names or ():
        if SCALAR_DTYPE[name].kind == "u":
            yield Column(name, "int", found[name].astype(np.int64))
        else:
            yield Column(name, "float", found[name].astype(np.float64), absent[name])


def _without_meaning(found: NDArray[np.void]) -> dict[str, NDArray[np.bool_]]:
    """Return where each measure has none, as `Run.statistics` has it."""
    finite = found["count"] - found["positive_infinities"] - found["negative_infinities"] - found["nans"]
    nothing, only_zeros = finite == 0, finite <= found["zeros"]
    squares_vanished = (found["rms"] == 0) & ~only_zeros  # they left float32 at its lower end
    return {
        "min": nothing,
        "max": nothing,
        "smallest_nonzero": only_zeros,
        "mean": nothing | ~np.isfinite(found["mean"]),
        "rms": nothing | ~np.isfinite(found["rms"]) | squares_vanished,
    }


def _histograms(run: Run) -> Iterator[Column]:
    """Give a row for each tensor and exponent that occurred, summed over all samples."""
    totals = run.total_histograms()
    tensors, bins = np.nonzero(totals)
    yield Column("tensor", "int", tensors)
    yield Column("exponent", "int", bins + EXPONENT_MIN)
    yield Column("count", "int", totals[tensors, bins].astype(np.int64))


def _findings(run: Run) -> Iterator[Column]:
    findings = analyze(run)
    for name in ("id", "layer", "severity", "confidence", "action", "sentence"):
        yield Column(name, "text", [getattr(finding, name) for finding in findings])
    yield Column("consumers", "text", [json.dumps(finding.consumers) for finding in findings])
    numbers = [{name: _plain(number.value) for name, number in finding.numbers.items()} for finding in findings]
    yield Column("numbers", "text", list(map(json.dumps, numbers)))


def _plain(value: float | None) -> float | str | None:
    return value if value is None or np.isfinite(value) else str(value)


def _metrics(run: Run) -> Iterator[Column]:
    rows = [(epoch, name, value) for name, values in run.results.items() for epoch, value in enumerate(values)]
    yield Column("epoch", "int", [row[0] for row in rows])
    yield Column("metric", "text", [row[1] for row in rows])
    yield Column("value", "float", [row[2] for row in rows])


_MAKERS: dict[str, Callable[[Run], Iterator[Column]]] = {
    "layers": _records(LayerRecord, lambda run: run.layers),
    "tensors": _records(TensorRecord, lambda run: run.tensors),
    "samples": _records(SampleRecord, lambda run: run.samples),
    "statistics": _statistics,
    "histograms": _histograms,
    "loss_scales": _records(LossScaleRecord, lambda run: run.loss_scales),
    "findings": _findings,
    "lint": _records(LintFinding, lambda run: run.lint),
    "origins": _records(OriginRecord, lambda run: run.origins),
    "reference_steps": _records(ReferenceStepRecord, lambda run: run.reference_steps),
    "reference": _records(ReferenceRecord, lambda run: run.reference),
    "metrics": _metrics,
    "step_times": _records(StepTimeRecord, lambda run: run.step_times),
    "layer_times": _records(LayerTime, lambda run: run.layer_times()),
    "op_times": _records(OpRecord, lambda run: run.op_times),
    "replicas": _records(ReplicaRecord, lambda run: run.replicas),
    "devices": _records(DeviceInfo, lambda run: run.devices),
    "device_samples": _records(DeviceSample, lambda run: run.device_samples),
    "notices": _records(NoticeRecord, lambda run: run.notices),
    "costs": _records(CostRecord, lambda run: run.costs),
}
#: Names of the tables.
TABLES: tuple[str, ...] = tuple(_MAKERS)
