"""policy.yaml: written and read again, and what is said about one that is wrong."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import yaml

from precscope.advice import Evidence, analyze
from precscope.advice.proposal import propose_policy
from precscope.errors import PolicyError
from precscope.layer_match import match_layers
from precscope.policy import KeptLayer, MadeFor, OptimizerNeeds, Pin, Policy, Price, Proof, Reason
from precscope.policy_file import policy_yaml, read_policy, write_policy
from tests.synthetic_runs import SyntheticRun, healthy, layer, with_bad

LAYERS = {"first": "Dense", "second": "Dense", "block": "Block", "block/soft": "Softmax", "head": "Dense"}
REASON = Reason("activation_overflow", "observed", "It broke: 'second'.", {"infinities": 3, "largest input": None})
PROOF = Proof("Proven on 2 batches.", None, 0.9999, 0.999, 2, (32768.0, 65536.0), "2 CPU cores")
POLICY = Policy(
    default="mixed_float16",
    made_for=MadeFor("tower", "Functional", "first-run", 1.5, LAYERS),
    pins=(Pin("second", "float32", "Dense", (REASON,), Price(0.25, None, 2)),),
    kept=(KeptLayer("head", "float32"),),
    optimizer=OptimizerNeeds(True, 2.0**15),
    proven=True,
    proof=PROOF,
)


def changed(path, **changes):
    content = yaml.safe_load(policy_yaml(POLICY))
    content.update(changes)
    path.write_text(yaml.safe_dump(content, explicit_end=True))
    return path


def test_what_is_written_is_read_again(tmp_path):
    path = write_policy(POLICY, tmp_path / "policy.yaml")
    assert read_policy(path) == POLICY
    assert path.read_text() == policy_yaml(POLICY)
    assert not (tmp_path / "policy.yaml.part").exists()


def test_a_file_is_replaced_only_when_asked(tmp_path):
    path = write_policy(POLICY, tmp_path / "policy.yaml")
    with pytest.raises(PolicyError, match=r"exists.*--force"):
        write_policy(POLICY, path)
    write_policy(replace(POLICY, proven=None), path, overwrite=True)
    assert read_policy(path).proven is None
    with pytest.raises(PolicyError, match="cannot be written"):
        write_policy(POLICY, tmp_path / "missing" / "policy.yaml")


def test_a_hand_written_policy_needs_little(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(
        "format: precscope-policy\nversion: 1\ndefault: mixed_float16\npins: [{layer: head}]\n"
        "made_for: {model: m, model_class: M, run: none}\n...\n"
    )
    policy = read_policy(path)
    assert policy.pins == (Pin("head", "float32"),)
    assert match_layers(policy, LAYERS)["head"] == "head"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "There is no policy file .* precscope policy RUN_DIR"),
        ("", "not a precision policy"),
        ("format: precscope-run\nversion: 1\n...\n", "not a precision policy: it does not say"),
        ("a: [1", "damaged: it is not valid YAML"),
        ("format: precscope-policy\nversion: 2\n...\n", "newer PrecScope: it has format version 2, .* up to 1"),
        ("format: precscope-policy\nversion: x\n...\n", "damaged: it has the format version 'x'"),
        ("format: precscope-policy\nversion: 1\n...\n", "damaged: it lacks .*'default' .* at its top level"),
        ("format: precscope-policy\nversion: 1\ndefault: float32\n", "damaged: it is cut off"),
    ],
)
def test_each_wrong_file_gets_its_own_message(tmp_path, text, message):
    path = tmp_path / "policy.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(PolicyError, match=message):
        read_policy(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pinns": []}, r"unknown key 'pinns'\. Did you mean 'pins'\? Mend that by hand, or write"),
        ({"pins": ["head"]}, r"has 'head' at 'pins\[0\]', expected a mapping, such as {layer: head, policy: float32}"),
        ({"optimizer": {"initial_scale": math.inf}}, "has inf at 'optimizer.initial_scale', expected a positive"),
        ({"default": 3}, "has 3 at 'default', expected a text"),
        ({"pins": {}}, "at 'pins', expected a list"),
        ({"pins": [{"layer": "a", "pollicy": "float32"}]}, r"unknown key 'pins\[0\].pollicy'"),
        ({"pins": [{"policy": "float32"}]}, r"lacks 'layer' in 'pins\[0\]'"),
        ({"proven": "yes"}, "at 'proven', expected true, false or null"),
        ({"optimizer": {"initial_scale": -1}}, "at 'optimizer.initial_scale', expected a positive number or null"),
        ({"made_for": {"model": "m", "model_class": "M", "run": "r", "layers": ["a"]}}, "expected texts by name"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(tmp_path, changes, message):
    with pytest.raises(PolicyError, match=message):
        read_policy(changed(tmp_path / "policy.yaml", **changes))


def test_what_is_no_path_is_told():
    with pytest.raises(PolicyError, match="Expected a policy or the path of its file, received int"):
        read_policy(5)


# Matching layers


def test_layers_are_matched_by_id():
    assert match_layers(POLICY, dict(reversed(LAYERS.items()))) == {name: name for name in LAYERS}


def policy_of(layers, *pins):
    return Policy("mixed_float16", MadeFor("m", "Sequential", "r", None, layers), tuple(map(Pin, pins)))


def test_names_that_keras_numbered_are_matched_by_their_order():
    policy = policy_of({"dense_9": "Dense", "re_lu": "ReLU", "dense_10": "Dense", "mine": "Dense"}, "dense_10")
    again = {"dense": "Dense", "re_lu_4": "ReLU", "dense_1": "Dense", "mine": "Dense"}
    assert match_layers(policy, again) == {
        "dense_9": "dense",
        "re_lu": "re_lu_4",
        "dense_10": "dense_1",
        "mine": "mine",
    }


def test_numbers_that_overlap_are_not_taken_by_name():
    """'dense_1' is there, but is the first layer now: the pin is on the second one."""
    policy = policy_of({"dense": "Dense", "dense_1": "Dense"}, "dense_1")
    assert match_layers(policy, {"dense_1": "Dense", "dense_2": "Dense"})["dense_1"] == "dense_2"


def test_numbers_inside_nested_models_are_matched_too():
    policy = policy_of({"sequential_3": "Sequential", "sequential_3/dense_5": "Dense"}, "sequential_3/dense_5")
    again = {"sequential": "Sequential", "sequential/dense": "Dense"}
    assert match_layers(policy, again)["sequential_3/dense_5"] == "sequential/dense"


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({**LAYERS, "extra": "Dense"}, "made for another model: 'tower'.* it has 'extra' beside"),
        ({name: type for name, type in LAYERS.items() if name != "second"}, "it lacks 'second'"),
        ({**LAYERS, "head": "Conv2D"}, "'head' is of another class"),
        ({"dense": "Dense"}, "with 1 layers?, it lacks 'second'"),
    ],
)
def test_another_model_is_told_by_its_layers(layers, message):
    with pytest.raises(PolicyError, match=message):
        match_layers(POLICY, layers)


def test_a_name_that_matches_nothing_or_two_layers_is_an_error_with_the_nearest_names():
    layers = {"encoder/norm": "Dense", "decoder/norm": "Dense", "head": "Dense"}
    with pytest.raises(PolicyError, match=r"'haed' matches no layer of the model. Did you mean 'head'"):
        match_layers(policy_of(layers, "haed"), layers)
    with pytest.raises(PolicyError, match="'norm' could be 'encoder/norm' and 'decoder/norm': 2 layers"):
        match_layers(policy_of(layers, "norm"), layers)
    with pytest.raises(PolicyError, match="names layer 'head' 2 times"):
        match_layers(policy_of(layers, "head", "head"), layers)


# From a run to a policy


def proposed(run):
    evidence = Evidence(run)
    return propose_policy(evidence, analyze(evidence))


def test_a_run_with_a_source_gives_a_policy_with_its_reasons(tmp_path):
    bad = healthy() | {"activation second": with_bad(healthy()["activation second"], float("inf"))}
    run = SyntheticRun(steps=[bad]).read(tmp_path / "run")
    policy = proposed(run)
    assert policy.default == "mixed_float16"
    assert [pin.layer for pin in policy.pins] == ["second"]
    assert policy.pins[0].reasons[0].finding == "activation_overflow"
    assert policy.pins[0].reasons[0].numbers["infinities"] == 1
    assert policy.kept == (KeptLayer("head", "float32"),)
    assert policy.optimizer.loss_scale_optimizer
    assert policy.proven is None
    assert policy.made_for.layers["input"] == "InputLayer"
    write_policy(policy, tmp_path / "policy.yaml")
    assert read_policy(tmp_path / "policy.yaml") == policy


def test_the_default_is_what_the_layers_follow_not_what_the_model_says(tmp_path):
    layers = (layer("input", type="InputLayer", compute="float32"), layer("first", "input"), layer("second", "first"))
    run = SyntheticRun(steps=[], layers=layers, model={"dtype_policy": "float32"}).read(tmp_path / "run")
    policy = proposed(run)
    assert policy.default == "mixed_float16"
    assert policy.kept == (KeptLayer("(model)", "float32"),)


def test_a_float32_run_asks_for_nothing(tmp_path):
    layers = (layer("input", type="InputLayer", compute="float32"), layer("head", "input", compute="float32"))
    run = SyntheticRun(steps=[], layers=layers, model={"dtype_policy": "float32"}).read(tmp_path / "run")
    policy = proposed(run)
    assert (policy.default, policy.pins, policy.kept) == ("float32", (), ())
    assert not policy.optimizer.loss_scale_optimizer
