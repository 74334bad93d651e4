"""The gate: what holds, what does not, and what could not be judged; in each of its formats."""

from __future__ import annotations

import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from precscope.advice import Evidence, analyze
from precscope.advice.proposal import propose_policy
from precscope.cli import main
from precscope.gate import check_json, check_run
from precscope.limits import Limits
from precscope.policy import KeptLayer, OptimizerNeeds, Pin
from precscope.policy_file import write_policy
from precscope.reader import open_run
from precscope.reports.check_formats import as_github, as_junit
from precscope.reports.terminal_check import print_check
from tests.synthetic_runs import HOSTILE, TOWER, SyntheticRun, healthy, layer, values, with_bad
from tests.test_reference_view import record
from tests.test_terminal_report import RUNS, in_bfloat16

#: Nothing but what a test asks for.
OFF = Limits(max_severity=None, any_ending=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: run.read(folder / name) for name, run in RUNS.items()}


def judged(run, **limits):
    """The one judgement that `limits` ask for."""
    (judgement,) = check_run(run, replace(OFF, **limits)).judgements
    return judgement


@pytest.mark.parametrize(
    ("name", "limit", "outcome", "value"),
    [
        ("faulty", {"max_severity": "warning"}, "not held", "error"),
        ("healthy", {"max_severity": "warning"}, "held", "info"),
        ("healthy", {"max_severity": "none"}, "not held", "info"),
        ("healthy", {"max_severity": "info"}, "held", "info"),
        ("bfloat16", {"max_severity": "none"}, "held", "none"),
        ("empty", {"max_severity": "warning"}, "not judged", None),
        ("faulty", {"max_skipped_steps": 6}, "held", 6),
        ("faulty", {"max_skipped_steps": 5}, "not held", 6),
        ("faulty", {"max_skipped_share": 6 / 550}, "held", 6 / 550),
        ("faulty", {"max_skipped_share": 0.01}, "not held", 6 / 550),
        ("empty", {"max_skipped_steps": 100}, "not judged", None),
        ("empty", {"max_skipped_share": 1.0}, "not judged", None),
        ("faulty", {"min_loss_scale": 512}, "held", 512.0),
        ("faulty", {"min_loss_scale": 513}, "not held", 512.0),
        ("bfloat16", {"min_loss_scale": 1}, "not judged", None),
        ("empty", {"min_loss_scale": 1}, "not judged", None),
        ("healthy", {"min_headroom_bits": 4}, "held", pytest.approx(14.1, abs=0.3)),
        ("healthy", {"min_headroom_bits": 15}, "not held", pytest.approx(14.1, abs=0.3)),
        ("empty", {"min_headroom_bits": 0}, "not judged", None),
        ("healthy", {"max_flushed_share": 1.0}, "not judged", None),
        ("empty", {"max_subnormal_share": 1.0}, "not judged", None),
    ],
)
def test_each_limit(runs, name, limit, outcome, value):
    found = judged(runs[name], **limit)
    assert (found.outcome, found.value) == (outcome, value)
    assert found.limit == next(iter(limit))


def test_an_output_that_overflowed_leaves_no_headroom(runs):
    found = judged(runs["faulty"], min_headroom_bits=0)
    assert found.outcome == "not held"
    assert found.offenders == ("'second' overflowed: 6 infinite values",)


def test_what_is_not_finite_at_all(tmp_path):
    run = SyntheticRun(steps=[{"activation first": np.full(9, math.inf, np.float16)}]).read(tmp_path / "inf")
    assert judged(run, min_headroom_bits=0).outcome == "not held"
    run = SyntheticRun(steps=[{"activation first": np.full(9, math.nan, np.float16)}]).read(tmp_path / "nan")
    assert judged(run, min_headroom_bits=0).outcome == "not judged"
    assert judged(run, max_severity="warning").outcome == "not held"


def test_a_float32_run_has_nothing_that_16_bits_limit(tmp_path):
    layers = tuple(replace(item, compute_dtype="float32") for item in TOWER)
    wide = {key: array.astype(np.float32) for key, array in healthy().items()}
    run = SyntheticRun(layers, [wide]).read(tmp_path / "run")
    assert judged(run, min_headroom_bits=1).outcome == "not judged"
    assert judged(run, max_subnormal_share=1.0).outcome == "not judged"


def test_subnormal_values(tmp_path):
    small = values(scale=2.0**-15, dtype=np.float16)
    run = SyntheticRun(steps=[healthy() | {"activation first": small}]).read(tmp_path / "run")
    share = np.count_nonzero((np.abs(small) < 2.0**-14) & (small != 0)) / np.count_nonzero(small)
    assert judged(run, max_subnormal_share=share).outcome == "held"
    found = judged(run, max_subnormal_share=share - 0.001)
    assert (found.outcome, found.value) == ("not held", share)
    assert found.offenders[0].startswith("'first': ")


def test_flushed_values_are_those_that_a_reference_step_measured(tmp_path):
    run = SyntheticRun(steps=[healthy()]).read(tmp_path / "run")
    rows = [("first", 100, 5), ("second", 1000, 1), ("first", 100, 2), ("head", 0, 0)]
    records = [record(name, "activation", reference_nonzero=all_, flushed=part) for name, all_, part in rows]
    run = replace(run, reference=tuple(records))
    assert judged(run, max_flushed_share=0.05).outcome == "held"
    found = judged(run, max_flushed_share=0.0)
    assert (found.outcome, found.value) == ("not held", 0.05)
    assert found.offenders == ("'first': 5%", "'second': 0.10%")


def test_skips_that_only_samples_tell(tmp_path):
    """They are the least that was skipped: enough to refuse a run, not to let it pass."""
    samples = [{"applied": False}, {"applied": True}]
    run = SyntheticRun(steps=[healthy()] * 2, samples=samples).read(tmp_path / "run")
    assert judged(run, max_skipped_steps=0).outcome == "not held"
    assert judged(run, max_skipped_steps=1).outcome == "not judged"
    assert "Only sampled steps are known" in judged(run, max_skipped_steps=1).sentence


def test_without_a_loss_scale_no_step_is_skipped(tmp_path):
    run = replace(in_bfloat16(), samples=[{"loss_scale": None, "applied": None}] * 2).read(tmp_path / "run")
    assert judged(run, max_skipped_steps=0).outcome == "held"
    assert "no step is skipped" in judged(run, max_skipped_share=0.0).sentence


@pytest.mark.parametrize(
    ("status", "outcome", "code"),
    [("finished", "held", 0), ("failed", "not held", 1), ("interrupted", "not held", 1), ("running", "not judged", 2)],
)
def test_how_the_training_ended(tmp_path, status, outcome, code):
    run = SyntheticRun(steps=[healthy()], status=status, error="ValueError: x").read(tmp_path / "run")
    run = replace(run, process_alive=True)
    result = check_run(run, Limits())
    assert (result.judgements[0].limit, result.judgements[0].outcome) == ("ending", outcome)
    assert result.exit_code == code
    assert check_run(run, Limits(any_ending=True)).exit_code == 0
    killed = replace(run, process_alive=False)
    assert check_run(killed, Limits()).exit_code == (code if status != "running" else 1)


def test_broken_goes_before_not_judged(runs):
    assert check_run(runs["healthy"], replace(OFF, max_flushed_share=1.0)).exit_code == 2
    assert check_run(runs["healthy"], replace(OFF, max_flushed_share=1.0, max_severity="none")).exit_code == 1
    assert check_run(runs["healthy"], replace(OFF, max_severity="info")).exit_code == 0


def policy_of(run):
    evidence = Evidence(run)
    return propose_policy(evidence, analyze(evidence), pins=())


def test_the_run_that_a_policy_was_made_from_does_not_drift(runs, tmp_path):
    path = write_policy(policy_of(runs["healthy"]), tmp_path / "policy.yaml")
    found = judged(runs["healthy"], policy=str(path))
    assert (found.outcome, found.value) == ("held", 0)


def test_policy_drift(runs, tmp_path):
    made = policy_of(runs["healthy"])
    path = write_policy(replace(made, pins=(Pin("second", "float32", "Dense"),)), tmp_path / "policy.yaml")
    found = judged(runs["healthy"], policy=str(path))
    assert (found.outcome, found.value) == ("not held", 1)
    assert found.offenders == ("'second' had mixed_float16, the file has float32",)
    path = write_policy(replace(made, default="mixed_bfloat16"), tmp_path / "policy.yaml", overwrite=True)
    assert [line.split()[0] for line in judged(runs["healthy"], policy=str(path)).offenders] == ["'first'", "'second'"]
    path = write_policy(replace(made, kept=()), tmp_path / "policy.yaml", overwrite=True)
    assert judged(runs["healthy"], policy=str(path)).offenders == ("'head' had float32, the file has mixed_float16",)


def test_a_pin_covers_what_a_layer_owns_and_goes_before_what_was_kept(tmp_path):
    layers = (layer("block"), layer("block/inner", compute="float32"), layer("blocked"))
    run = SyntheticRun(layers, [{"activation block": values()}]).read(tmp_path / "run")
    made = replace(policy_of(run), kept=(KeptLayer("block/inner", "mixed_float16"),))
    path = write_policy(replace(made, pins=(Pin("block", "float32", "Dense"),)), tmp_path / "policy.yaml")
    assert judged(run, policy=str(path)).offenders == ("'block' had mixed_float16, the file has float32",)
    path = write_policy(made, path, overwrite=True)
    assert judged(run, policy=str(path)).offenders == ("'block/inner' had float32, the file has mixed_float16",)


def test_an_optimizer_that_is_not_wrapped_any_more_is_drift(runs, tmp_path):
    made = replace(policy_of(runs["bfloat16"]), optimizer=OptimizerNeeds(True, 2.0**15))
    path = write_policy(made, tmp_path / "policy.yaml")
    assert judged(runs["bfloat16"], policy=str(path)).offenders == (
        "the loss was not scaled, the file asks for LossScaleOptimizer",
    )


def test_a_policy_of_another_model_cannot_be_judged(runs, tmp_path):
    other = SyntheticRun((layer("other"),), [{"activation other": values()}]).read(tmp_path / "run")
    path = write_policy(policy_of(other), tmp_path / "policy.yaml")
    found = judged(runs["healthy"], policy=str(path))
    assert found.outcome == "not judged"
    assert "The policy was made for another model" in found.sentence


def call(capsys, *words):
    code = main(["check", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_exit_codes_of_the_command(runs, tmp_path, capsys):
    healthy_path = runs["healthy"].path
    assert call(capsys, healthy_path)[0] == 0
    assert call(capsys, healthy_path, "--max-severity", "none")[0] == 1
    assert call(capsys, healthy_path, "--max-flushed-share", "0.5")[0] == 2
    for words in ([tmp_path / "nowhere"], [healthy_path, "--max-skipped-share", "7"]):
        code, out, error = call(capsys, *words)
        assert (code, out) == (2, "")
        assert error.startswith("precscope: ")
    code, _, error = call(capsys, healthy_path, "--policy", tmp_path / "none.yaml")
    assert code == 2
    assert "There is no policy file" in error


@pytest.mark.parametrize("output", ["json", "junit", "github"])
def test_what_cannot_be_checked_is_told_in_the_format_that_was_asked_for(tmp_path, capsys, output):
    file = tmp_path / "limits.yaml"
    file.write_text("max_skiped_steps: 3\n")
    code, out, error = call(capsys, tmp_path / "run", "--limits", file, "--format", output)
    assert (code, error) == (2, "")
    assert "Unknown limit 'max_skiped_steps'" in out.replace("&#x27;", "'")
    assert "not judged" in out


def hostile(tmp_path):
    names = ["::error::x%0A", *HOSTILE, "]]><!--", "\ufffe"]
    layers = tuple(layer(name) for name in names)
    step = {f"activation {name}": with_bad(values(), 6e4, math.inf) for name in names}
    return SyntheticRun(layers, [step], status="failed", error="evil\x00\x1b[2J\n::error::me").read(tmp_path / "run")


def test_junit_is_xml_whatever_the_names(tmp_path):
    text = as_junit(check_run(hostile(tmp_path), Limits(min_headroom_bits=2.0, max_flushed_share=0.1)))
    root = ElementTree.fromstring(text)
    assert root.attrib == {"tests": "4", "failures": "3", "errors": "1"}
    cases = {case.get("name"): case for case in root.iter("testcase")}
    assert list(cases) == ["ending", "max_severity", "max_flushed_share", "min_headroom_bits"]
    assert cases["min_headroom_bits"].find("failure").get("type") == "not held"
    assert cases["max_flushed_share"].find("error") is not None
    assert r"'esc\x1b[31mape\x1b]0;title\x07' overflowed" in cases["min_headroom_bits"].find("failure").text
    assert all(c.isprintable() or c == "\n" for c in text)
    text.encode("utf-8")


def test_github_gets_one_command_a_line(tmp_path):
    text = as_github(check_run(hostile(tmp_path), Limits(min_headroom_bits=2.0)))
    lines = text.splitlines()
    assert len(lines) == 4  # ending, severity, headroom, and the whole
    assert all(re.fullmatch(r"::(error|notice) title=[^:,]*::.+", line) for line in lines)
    assert "'::error::x%250A' overflowed" in text
    assert lines[-1] == "::notice title=PrecScope::0 of 3 limits held by run."
    assert all(c.isprintable() or c == "\n" for c in text)


def test_github_escapes_as_its_toolkit_does():
    from precscope.reports.check_formats import _command

    assert _command("error", "a:b,c%\n", "x%y\r\nz::w,") == "::error title=a%3Ab%2Cc%25%0A::x%25y%0D%0Az::w,"


def test_json(runs):
    content = json.loads(check_json(check_run(runs["faulty"], Limits(min_loss_scale=1.0))))
    assert {key: content[key] for key in ("format", "version", "run", "status", "outcome")} == {
        "format": "precscope-check",
        "version": 1,
        "run": "faulty",
        "status": "failed",
        "outcome": "not held",
    }
    assert content["judgements"][2]["value"] == 512.0
    assert set(content["judgements"][0]) == {"limit", "outcome", "allowed", "value", "sentence", "offenders"}


def shown(result, width=80, color=False):
    file = io.StringIO()
    system = "256" if color else None
    print_check(result, console=Console(file=file, width=width, color_system=system, force_terminal=color))
    return file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_in_the_terminal(runs, tmp_path, width):
    limits = Limits(max_flushed_share=0.1, min_loss_scale=1.0)
    text = shown(check_run(runs["faulty"], limits), width)
    assert max(map(len, text.splitlines())) <= width
    flat = " ".join(text.split())
    assert "✖ max_severity" in flat
    assert "▲ max_flushed_share Not judged. No reference step was taken" in flat
    assert "✔ min_loss_scale" in flat
    assert flat.endswith("✖ Not held: 2 of 4 limits.")
    colored = shown(check_run(runs["faulty"], limits), width, color=True)
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == text
    evil = shown(check_run(hostile(tmp_path), Limits(min_headroom_bits=2.0)), width)
    assert all(c.isprintable() for c in evil.replace("\n", ""))


def test_a_run_that_is_read_back_is_judged_alike(runs):
    assert check_run(open_run(runs["faulty"].path), Limits()) == check_run(runs["faulty"], Limits())
