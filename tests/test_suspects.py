"""The order in which layers are tried in float32."""

from __future__ import annotations

from dataclasses import replace

from precscope.advice import Evidence, analyze
from precscope.advice.suspects import further_layers, suspected_layers
from precscope.reference_records import ReferenceRecord
from tests.synthetic_runs import SyntheticRun, healthy, layer, with_bad

LAYERS = (
    layer("input", type="InputLayer", compute="float32", parameters=0),
    layer("first", "input"),
    layer("block", "first", type="Block"),
    layer("block/inside", "first"),
    layer("second", "block"),
    layer("third", "second"),
    layer("head", "third", compute="float32"),
    layer("(data)", type="batch"),
)


def order(run):
    evidence = Evidence(run)
    findings = analyze(evidence)
    return suspected_layers(findings), further_layers(evidence, findings)


def run_of(path, step=None):
    return SyntheticRun(layers=LAYERS, steps=[step or healthy()]).read(path)


def own(layer_id, error):
    return ReferenceRecord(
        5,
        "start",
        layer_id,
        "activation",
        "0",
        10,
        10,
        1.0,
        0,
        0,
        0,
        error,
        None,
        None,
        None,
        10,
        0,
        0,
        0,
        error,
    )


def test_without_findings_the_loss_comes_first_and_owners_last(tmp_path):
    suspects, others = order(run_of(tmp_path / "run"))
    assert suspects == ()
    assert others == ("third", "second", "block/inside", "first", "block")


def test_suspects_are_left_out_and_their_neighbours_come_first(tmp_path):
    step = healthy() | {"activation first": with_bad(healthy()["activation first"], float("inf"))}
    suspects, others = order(run_of(tmp_path / "run", step))
    assert "first" in suspects
    assert not set(suspects) & set(others)
    assert set(suspects) | set(others) == {"first", "block", "block/inside", "second", "third"}


def test_what_a_reference_step_measured_goes_before_the_position(tmp_path):
    reference = (own("second", 1e-4), own("first", 4e-4), own("block/inside", 2e-4))
    run = replace(run_of(tmp_path / "run"), reference=reference)
    assert order(run) == ((), ("first", "block/inside", "second", "third", "block"))
