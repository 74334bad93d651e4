"""Small run directories with a known truth, written by RunWriter and read by open_run, for advice and reports."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from precscope.reader import Run, open_run
from precscope.records import SCALAR_DTYPE, LossScaleRecord, NoticeRecord
from precscope.statistics import HISTOGRAM_BINS
from precscope.writer import RunWriter
from tests.core_fixtures import arrays_of, layer_record, run_record, sample_record, tensor_record

if TYPE_CHECKING:
    from pathlib import Path

    from precscope.lint_result import LintFinding
    from precscope.origin_records import OriginRecord
    from precscope.records import CostRecord, LayerRecord, RunStatus

MODEL = {
    "name": "tower",
    "class": "Functional",
    "layers": 4,
    "parameters": 12_345,
    "dtype_policy": "mixed_float16",
    "optimizer": "LossScaleOptimizer",
    "inner_optimizer": "Adam",
    "loss_scaling": "dynamic",
}

#: Names of layers that must only show: markup, control characters, lines, directions, widths, nothing.
HOSTILE = [
    "[red]bold[/red]",
    "esc\x1b[31mape\x1b]0;title\x07",
    "new\nline\r\ttab\x00\x9b31m",
    "x" * 10_000,
    "\u202ertl\u2066 \u05e9\u05dc\u05d5\u05dd\u200f",
    "日本語の層の名前がとても長いので切られます",
    "emoji:smile:🙂",
    "</script><img src=x onerror=alert(1)>",
    "",
]


def layer(id: str, *inputs: str, type: str = "Dense", compute: str = "float16", **changes: Any) -> LayerRecord:
    """A layer that consumes `inputs`; its order is set by `SyntheticRun`."""
    policy = {"float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}.get(compute, compute)
    values: dict[str, Any] = {"type": type, "compute_dtype": compute, "policy": policy, "inputs": inputs}
    return layer_record(id, **{**values, **changes})


#: input -> first -> second -> head, the head in float32 as Keras advises.
TOWER = (
    layer("input", type="InputLayer", compute="float32", parameters=0),
    layer("first", "input"),
    layer("second", "first"),
    layer("head", "second", compute="float32"),
)


def values(size: int = 1000, scale: float = 1.0, dtype: Any = np.float16, seed: int = 0) -> np.ndarray:
    """Normally distributed values with the given standard deviation."""
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(dtype)


def with_bad(array: np.ndarray, *bad: float) -> np.ndarray:
    """`array` whose first elements are `bad`."""
    array = array.copy()
    array[: len(bad)] = bad
    return array


def healthy(seed: int = 0) -> dict[str, np.ndarray]:
    """One step of the tower, with gradients scaled by 2**15."""
    return {
        "activation input": values(dtype=np.float32, seed=seed),
        "activation first": values(seed=seed + 1),
        "activation second": values(seed=seed + 2),
        "activation head": values(dtype=np.float32, seed=seed + 3),
        "gradient first": values(scale=1.0, seed=seed + 4),
        "gradient second": values(scale=2.0, seed=seed + 5),
        "gradient head": values(scale=4.0, dtype=np.float32, seed=seed + 6),
        "weight first": values(scale=0.1, dtype=np.float32, seed=seed + 7),
        "weight_gradient first": values(scale=8.0, dtype=np.float32, seed=seed + 8),
    }


@dataclass
class SyntheticRun:
    """What a run directory should hold.

    Attributes:
        steps: One dict a sample: arrays by "kind layer"; what a step lacks was not recorded in it.
        samples: What differs from a plain sample, one dict a sample.
        scales: Looks at the optimizer: (step, loss scale, skipped so far).
        updates: (updates, lost) by layer, the same in each sample, for its tensor of kind "weight".
    """

    layers: tuple[LayerRecord, ...] = TOWER
    steps: list[dict[str, np.ndarray]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    scales: list[tuple[int, float | None, int]] = field(default_factory=list)
    updates: dict[str, tuple[int, int]] = field(default_factory=dict)
    notices: list[NoticeRecord] = field(default_factory=list)
    costs: list[CostRecord] = field(default_factory=list)
    origins: list[OriginRecord] = field(default_factory=list)
    lint: list[LintFinding] = field(default_factory=list)
    status: RunStatus = "finished"
    error: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        """Write the run directory and return its path."""
        record = run_record(name=path.name, model=MODEL | self.model, **self.record)
        writer = RunWriter.create(path, record)
        writer.add_layers([replace(item, order=order) for order, item in enumerate(self.layers)])
        keys = list(dict.fromkeys(key for step in self.steps for key in step))
        writer.add_tensors([self._tensor(index, key) for index, key in enumerate(keys)])
        for number, step in enumerate(self.steps):
            changes = self.samples[number] if number < len(self.samples) else {}
            writer.add_sample(sample_record(**{"step": 10 * number, **changes}), *self._arrays(keys, step))
        for step_number, scale, skipped in self.scales:
            writer.add_loss_scale(LossScaleRecord(step_number, scale, step_number - skipped, skipped, None))
        for notice in self.notices:
            writer.add_notice(notice)
        writer.set_costs(self.costs)
        writer.add_lint(self.lint)
        for origin in self.origins:
            writer.add_origin(origin)
        if self.status != "running":
            writer.close(self.status, self.error, ended_unix_s=record.started_unix_s + 134.0)
        return path

    def read(self, path: Path) -> Run:
        """Write the run directory and read it again."""
        return open_run(self.write(path))

    def _tensor(self, index: int, key: str) -> Any:
        kind, _, layer_id = key.partition(" ")
        array = next(step[key] for step in self.steps if key in step)
        name = "0" if kind in ("activation", "gradient") else "kernel"
        return tensor_record(
            index, layer_id, kind=kind, name=name, dtype=array.dtype.name, shape=(None, *array.shape[1:])
        )

    def _arrays(self, keys: list[str], step: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        scalars = np.zeros(len(keys), SCALAR_DTYPE)
        histograms = np.zeros((len(keys), HISTOGRAM_BINS), np.uint64)
        for index, key in enumerate(keys):
            if key not in step:
                continue
            one_scalars, one_histogram = arrays_of(step[key])
            kind, _, layer_id = key.partition(" ")
            if kind == "weight" and layer_id in self.updates:
                one_scalars["updates"], one_scalars["lost_updates"] = self.updates[layer_id]
            scalars[index], histograms[index] = one_scalars[0], one_histogram[0]
        return scalars, histograms
