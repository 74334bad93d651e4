"""The report for programs: held to its schema and its documentation, and harmless whatever names it holds."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from typing import get_args

import jsonschema
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from precscope.advice import Evidence
from precscope.advice.finding import Action, Confidence, Severity
from precscope.advice.loss_scale_verdict import Cause as SkipCause
from precscope.cli import main
from precscope.commands.report import _ORDERS, report
from precscope.layer_time import Part
from precscope.op_records import OpRecord, ProfiledWindow
from precscope.origin_records import Cause as OriginCause
from precscope.origin_records import OriginRecord
from precscope.records import TensorKind
from precscope.replay import Criterion, Measured, Replay
from precscope.reports.layer_order import ORDERS
from precscope.reports.report_data import report_data
from precscope.reports.report_formats import as_json, as_markdown
from precscope.run_summary import MemorySource
from precscope.verification import Verification, write_verification
from precscope.writer import RunWriter
from tests.core_fixtures import layer_record, run_record
from tests.synthetic_runs import HOSTILE, SyntheticRun, healthy, layer, values, with_bad
from tests.test_terminal_report import RUNS


@pytest.fixture(scope="module")
def schema(request):
    root = request.config.rootpath
    content = json.loads((root / "docs" / "report.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(content)
    return content


def only_nan():
    step = {key: np.full_like(array, np.nan) for key, array in healthy().items()}
    return SyntheticRun(steps=[step, step], samples=[{"loss": math.nan, "applied": False}] * 2)


def hostile():
    layers = tuple(layer(name, *HOSTILE[place - 1 : place]) for place, name in enumerate(HOSTILE))
    step = {f"activation {name}": with_bad(values(), math.inf) for name in HOSTILE}
    return SyntheticRun(layers, [step], model={"name": HOSTILE[1]}, status="failed", error=HOSTILE[2])


SYNTHETIC = {
    **RUNS,
    "interrupted": SyntheticRun(steps=[healthy()], status="interrupted", error="KeyboardInterrupt"),
    "infinite scale": SyntheticRun(steps=[healthy()] * 2, scales=[(0, math.inf, 0), (10, 0.0, 5)]),
    "one sample": SyntheticRun(steps=[healthy()]),
    "only NaN": only_nan(),
    "hostile": hostile(),
}


def timed(path):
    """A run with times by layer, which SyntheticRun has not."""
    writer = RunWriter.create(path, run_record())
    writer.add_layers([layer_record("fast"), layer_record("slow", order=1), layer_record("unknown", order=2)])
    ops = [OpRecord("a", None, "k", "fast", "forward", "float16", 10**6, 1, None, "gpu:0")]
    ops += [OpRecord("b", None, "k", "slow", "backward", "float16", 3 * 10**6, 1, True, "gpu:0")]
    writer.add_op_times(ProfiledWindow(20, 1), ops)
    writer.close("finished")
    return path


def proven(path):
    """A run with a proof and an origin."""
    writer = RunWriter.create(path, run_record())
    writer.add_layers([layer_record("first")])
    writer.add_origin(OriginRecord(0, 7, "layer", "forward", "first", bad_weights=("first/kernel",), epoch=1))
    writer.close("finished")

    def replay(cosine):
        return Measured((Replay(7, 1024.0, True, None, cosine, 1.0, None, None, 0.5, 0.5),), 1)

    proof = Verification(
        proven=True,
        is_minimal=False,
        default="mixed_float16",
        pins=("first",),
        suspects=("first",),
        left_out={},
        batches=(7, 9),
        weights="of the last batch",
        before=replay(None),
        after=replay(0.9995),
        bfloat16=None,
        trials=2,
        criterion=Criterion(),
        prices={},
        pin_prices={},
        timed_passes=0,
        device="CPU",
        unix_s=1.0,
    )
    write_verification(path, proof)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("runs")
    for name, run in SYNTHETIC.items():
        run.write(where / name)
    timed(where / "timed")
    proven(where / "proven")
    return where


def printed(path, *options):
    done = CliRunner().invoke(report, [str(path), *options], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def strict(text):
    """JSON as the standard has it: the names that Python accepts beyond are an error."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize("name", [*SYNTHETIC, "timed", "proven"])
def test_json_and_yaml_hold_to_the_schema(folder, schema, name):
    text = printed(folder / name, "--format", "json")
    content = strict(text)
    jsonschema.Draft202012Validator(schema).validate(content)
    assert yaml.safe_load(printed(folder / name, "--format", "yaml")) == content
    assert all(character.isprintable() for character in text.replace("\n", ""))


def test_the_schema_would_notice(folder, schema):
    content = strict(printed(folder / "faulty", "--format", "json"))
    validator = jsonschema.Draft202012Validator(schema)
    for change in ({"version": 2}, {"surprise": 1}, {"verdict": None}, {"loss": {**content["loss"], "value": "many"}}):
        assert not validator.is_valid(content | change), change
    del content["layers"][0]["tensors"][0]["nans"]
    assert not validator.is_valid(content)


@pytest.mark.parametrize(
    ("place", "known"),
    [
        (("$defs", "finding", "properties", "action"), Action),
        (("$defs", "finding", "properties", "severity"), Severity),
        (("$defs", "finding", "properties", "confidence"), Confidence),
        (("$defs", "tensor", "properties", "kind"), TensorKind),
        (("$defs", "skip", "properties", "cause"), SkipCause),
        (("properties", "time", "properties", "parts", "items", "properties", "part"), Part),
        (("properties", "origins", "items", "properties", "cause"), OriginCause),
        (("properties", "memory_bytes", "propertyNames"), MemorySource),
    ],
)
def test_the_schema_knows_every_word(schema, place, known):
    for step in place:
        schema = schema[step]
    assert sorted(schema["enum"]) == sorted(get_args(known))


def test_every_field_is_documented(schema, repository):
    page = (repository / "docs" / "report_format.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(\w+)(?:\[\])?`", page))
    documented |= {part for path in re.findall(r"`([\w.\[\]]+)`", page) for part in re.findall(r"\w+", path)}
    assert names_in(schema) - {"format", "version"} <= documented


def names_in(node):
    if isinstance(node, list):
        return set().union(*map(names_in, node))
    if not isinstance(node, dict):
        return set()
    inside = set().union(*map(names_in, node.values())) if node else set()
    properties = node.get("properties")
    return inside | (set(properties) if isinstance(properties, dict) else set())


def test_what_the_data_say(folder):
    content = strict(printed(folder / "faulty", "--format", "json"))
    assert content["verdict"]["keep_float32"] == ["second", "flatten"]
    assert [finding["id"] for finding in content["findings"]] == [
        "activation_overflow",
        "skipped_steps",
        "activation_headroom",
    ]
    assert content["findings"][0]["numbers"]["infinities"] == {"value": 6, "threshold": 0, "unit": ""}
    assert [item["id"] for item in content["layers"]] == ["second", "flatten", "first", "input", "head"]
    assert content["layers"][0]["tensors"][0]["infinities"] == 6
    assert content["layers"][1]["unseen"] == "shares its input"
    assert content["loss"]["value"] == "nan"
    assert content["loss_scale"]["steps_skipped"] == 6
    assert content["loss_scale"]["skips"][0]["cause"] == "forward_overflow"
    assert content["cost"]["time_ns"] == 3_290_000_000


def test_proof_and_origin(folder):
    content = strict(printed(folder / "proven", "--format", "json"))
    assert content["proof"] == {
        "proven": True,
        "minimal": False,
        "default": "mixed_float16",
        "keep_float32": ["first"],
        "cosine_before": None,
        "cosine_after": 0.9995,
        "least_cosine": Criterion().gradient_cosine,
        "within_noise": 0,
        "batches": 2,
        "device": "CPU",
    }
    (origin,) = content["origins"]
    assert (origin["step"], origin["layer"], origin["bad_weights"]) == (7, "first", ["first/kernel"])


def test_nothing_is_nothing(folder):
    content = strict(printed(folder / "empty", "--format", "json"))
    assert content["verdict"]["level"] == "unknown"
    assert content["findings"] == []
    assert content["policy"] is content["loss"]["value"] is content["time"]["step_time_ms"] is None
    assert all(item["headroom_bits"] is None and item["tensors"] == [] for item in content["layers"])


def ids(path, *options):
    return [row["id"] for row in csv.DictReader(io.StringIO(printed(path, "--format", "csv", *options)))]


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("harm", ["second", "flatten", "first", "input", "head"]),
        ("order", ["input", "first", "second", "flatten", "head"]),
        ("name", ["first", "flatten", "head", "input", "second"]),
        ("type", ["first", "second", "head", "flatten", "input"]),
        ("headroom", ["first", "second", "input", "flatten", "head"]),
        ("subnormal", ["first", "second", "input", "flatten", "head"]),
        ("nonfinite", ["second", "first", "head", "input", "flatten"]),
        ("parameters", ["first", "second", "flatten", "head", "input"]),
        ("flushed", ["second", "flatten", "first", "input", "head"]),  # not measured: as harm
    ],
)
def test_layers_are_sorted(folder, sort, expected):
    assert ids(folder / "faulty", "--sort", sort) == expected
    order = "harm" if sort == "flushed" else sort
    assert strict(printed(folder / "faulty", "--format", "json", "--sort", sort))["order"] == order


def test_unknown_numbers_come_last(folder):
    assert ids(folder / "timed", "--sort", "time") == ["slow", "fast", "unknown"]


def test_the_command_knows_every_order():
    assert tuple(ORDERS) == _ORDERS


def test_a_pattern_chooses_layers(folder):
    assert ids(folder / "faulty", "--layer", "^f") == ["flatten", "first"]
    with pytest.raises(Exception, match="matches --layer 'nowhere'"):
        printed(folder / "faulty", "--format", "json", "--layer", "nowhere")


def test_csv_is_documented_and_harmless(folder, repository, tmp_path):
    page = (repository / "docs" / "report_format.md").read_text(encoding="utf-8").partition("## CSV")[2]
    head = printed(folder / "faulty", "--format", "csv").splitlines()[0].split(",")
    assert head == re.findall(r"`(\w+)`", page.partition("\nEmpty is")[0])
    names = ("=HYPERLINK(1)", "+1", "@SUM(A1)", 'quote",comma', "line\nend\x1b[2J")
    layers = tuple(layer(name) for name in names)
    text = printed(SyntheticRun(layers, [{}]).write(tmp_path / "run"), "--format", "csv")
    cells = [row["id"] for row in csv.DictReader(io.StringIO(text))]
    assert cells == ["'=HYPERLINK(1)", "'+1", "'@SUM(A1)", 'quote",comma', r"line\nend\x1b[2J"]


def test_markdown_answers(folder):
    text = printed(folder / "faulty", "--format", "markdown")
    assert text.startswith("### ✖ Keep 2 of 5 layers in float32: 'second' and 'flatten'.\n")
    assert "| ✖ | `second` | float16 | 5.8 bit | <0.1% | – | 6 | – |" in text
    assert 'Dense(..., dtype="float32")  # second' in text
    assert "6 of 550 steps skipped" in text


def test_markdown_of_hostile_names_only_shows(tmp_path):
    evil = "a|b`c`\n# d\n<img src=x> [e](http://f) @everyone ![g](h)"
    run = SyntheticRun(
        (layer(evil),), [{f"activation {evil}": with_bad(values(), math.inf)}], status="failed", error=evil
    ).read(tmp_path / "run")
    text = as_markdown(report_data(Evidence(run)))
    blocks = text.split("\n```")  # a name must not end the block of code that it stands in
    assert len(blocks) == 3
    outside = blocks[0] + blocks[2]
    assert not re.search(r"(?<!\\)<|(?<!\\)\[|http://f|@everyone", re.sub(r"`[^`\n]*`", "", outside))
    row = next(line for line in text.splitlines() if line.startswith("| ✖"))
    assert row.count("|") == 9
    assert len([line for line in outside.splitlines() if line.startswith("#")]) == 2  # the verdict, the findings


def test_many_layers_are_cut_in_markdown_only(tmp_path):
    names = [f"dense_{number}" for number in range(30)]
    run = SyntheticRun(tuple(map(layer, names)), [{f"activation {name}": values() for name in names}])
    path = run.write(tmp_path / "run")
    assert "12 of 30 layers." in printed(path, "--format", "markdown")
    assert printed(path, "--format", "markdown", "--all").count("| `dense_") == 30
    assert len(strict(printed(path, "--format", "json"))["layers"]) == 30


def test_json_without_nan_tokens_from_python(tmp_path):
    text = as_json(report_data(Evidence(only_nan().read(tmp_path / "run"))))
    assert not re.search(r"(?<!\")\b(NaN|Infinity)\b(?!\")", re.sub(r'"[^"]*"', "", text))


def test_what_belongs_to_a_page_or_to_the_terminal(folder, capsys):
    for words in (["--html", "x.html", "--format", "json"], ["--html", "x.html", "--sort", "name"]):
        assert main(["report", str(folder / "faulty"), *words]) == 2
        assert "belong to the terminal" in capsys.readouterr().err
