"""The report's data as text: JSON, YAML, CSV, and Markdown for a pull request."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import yaml

from precscope.csv_text import csv_text
from precscope.json_text import json_text
from precscope.reports.layer_figures import LayerFigures
from precscope.reports.markdown import code, text
from precscope.reports.palette import LEVELS, SEVERITIES
from precscope.reports.report_data import FORMAT, VERSION
from precscope.reports.text import bits, byte_size, compact, duration, percent
from precscope.reports.time_view import milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from precscope.reports.report_records import ReportData

__all__ = ["RENDERERS", "as_csv", "as_json", "as_markdown", "as_yaml"]

_LAYER_FIELDS = tuple(
    item.name for item in fields(LayerFigures) if item.name not in ("keras_path", "inputs", "tensors")
)
_MOST_LAYERS, _MOST_FINDINGS = 12, 10


def as_json(data: ReportData) -> str:
    """Return the data as JSON: NaN and infinities are strings, absence is null."""
    return json_text(FORMAT, VERSION, data)


def as_yaml(data: ReportData) -> str:
    """Return the same as YAML."""
    content = json.loads(as_json(data))
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120).rstrip("\n")


class _Dumper(yaml.SafeDumper):
    """Spells equal lists out where they occur again (`&id001` is no help to a reader), and lines as lines."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _lines(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _lines)


def as_csv(data: ReportData) -> str:
    """Return the layers as CSV, one a row; what was not measured is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_LAYER_FIELDS)
    for layer in data.layers:
        writer.writerow([csv_text(getattr(layer, name)) for name in _LAYER_FIELDS])
    return file.getvalue().rstrip("\n")


def as_markdown(data: ReportData, *, show_all: bool = False) -> str:
    """Return the answer, the findings and the worst layers as GitHub's Markdown; all of them with `show_all`."""
    return "\n".join(_markdown(data, show_all))


RENDERERS: dict[str, Callable[[ReportData], str]] = {"json": as_json, "yaml": as_yaml, "csv": as_csv}


def _markdown(data: ReportData, show_all: bool) -> Iterator[str]:
    yield f"### {LEVELS[data.verdict.level][0]} {text(data.verdict.sentence)}"
    yield ""
    yield f"{code(data.run.name)}: {data.run.status}. {text(data.verdict.basis)}"
    if data.loss_scale.sentence is not None:
        yield ""
        yield text(data.loss_scale.sentence)
    if data.run.error is not None:
        yield ""
        yield f"The training ended with {code(data.run.error[:500])}"
    if data.policy is not None:
        yield ""
        yield from ("```python", *data.policy.replace("`", "'").splitlines(), "```")
    yield from _findings(data, show_all)
    yield from _layers(data, show_all)
    yield ""
    yield from _facts(data)


def _findings(data: ReportData, show_all: bool) -> Iterator[str]:
    shown = data.findings if show_all else data.findings[:_MOST_FINDINGS]
    if shown:
        yield ""
        yield "#### Findings"
        yield ""
    for number, finding in enumerate(shown, start=1):
        advice = "" if finding.advice is None else f" **{text(finding.advice)}**"
        sentence = text(finding.sentence)
        yield f"{number}. {SEVERITIES[finding.severity][0]} {sentence} ({finding.confidence}){advice}"
    if len(shown) < len(data.findings):
        yield ""
        yield f"And {len(data.findings) - len(shown):,} more."


def _layers(data: ReportData, show_all: bool) -> Iterator[str]:
    recorded = [layer for layer in data.layers if layer.tensors]
    shown = recorded if show_all else recorded[:_MOST_LAYERS]
    if not shown:
        return
    yield ""
    yield "| | layer | computes in | headroom | subnormal | flushed | inf/NaN | ms |"
    yield "|---|---|---|--:|--:|--:|--:|--:|"
    for layer in shown:
        yield _row(layer)
    if len(shown) < len(recorded):
        yield ""
        yield f"{len(shown)} of {len(recorded):,} layers."


def _row(layer: LayerFigures) -> str:
    cells = [
        SEVERITIES[layer.severity][0] if layer.severity else "",
        code(layer.id),
        text(layer.compute_dtype),
        bits(layer.headroom_bits),
        percent(layer.subnormal_share),
        percent(layer.flushed_share),
        compact(layer.nonfinite),
        milliseconds(layer.time_ms),
    ]
    return f"| {' | '.join(cells)} |".replace("|  |", "| |", 1)


def _facts(data: ReportData) -> Iterator[str]:
    facts = []
    if data.time.step_time_ms is not None:
        facts.append(f"{milliseconds(data.time.step_time_ms['median'])} ms a step")
    facts += [f"at most {byte_size(size)} ({text(source)})" for source, size in data.memory_bytes.items()]
    seen = data.loss_scale
    if seen.steps_skipped is not None:
        facts.append(f"{seen.steps_skipped:,} of {seen.steps_seen:,} steps skipped")
    share = "" if data.cost.share is None else f", {percent(data.cost.share)} of the run"
    facts.append(f"PrecScope cost {duration(data.cost.time_ns / 1e9)}{share}")
    yield " · ".join(facts)
