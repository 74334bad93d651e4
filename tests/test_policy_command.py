"""`precscope policy`, and the code it prints, run on real models."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest

from precscope.cli import main
from precscope.policy import MadeFor, OptimizerNeeds, Pin, Policy, Reason
from precscope.policy_code import policy_code
from precscope.policy_file import read_policy
from precscope.probes.layer_policies import model_layers
from precscope.reports.policy_text import policy_text
from tests.synthetic_runs import SyntheticRun, healthy, with_bad
from tests.test_apply_policy import Nested, attention_model, policy_for


def broken_run(path):
    step = healthy() | {"activation second": with_bad(healthy()["activation second"], float("inf"))}
    return SyntheticRun(steps=[step]).write(path)


def test_the_policy_is_printed_and_written(tmp_path, capsys):
    run = broken_run(tmp_path / "run")
    assert main(["policy", str(run)]) == 0
    printed = capsys.readouterr().out
    file = tmp_path / "policy.yaml"
    assert main(["policy", str(run), "-o", str(file)]) == 0
    assert "mixed_float16, 1 pinned, not proven yet (precscope verify)" in capsys.readouterr().out
    assert file.read_text() == printed
    assert [pin.layer for pin in read_policy(file).pins] == ["second"]
    assert main(["policy", str(run), "-o", str(file)]) == 2
    assert "exists. Give another name, or --force" in capsys.readouterr().err
    assert main(["policy", str(run), "-o", str(file), "--force"]) == 0
    assert main(["policy", str(run), "--force"]) == 2


def test_the_code_is_printed_with_the_reasons(tmp_path, capsys):
    assert main(["policy", str(broken_run(tmp_path / "run")), "--format", "python"]) == 0
    code = capsys.readouterr().out
    assert 'keras.config.set_dtype_policy("mixed_float16")' in code
    assert '#     Dense(..., dtype="float32")  # second' in code
    assert "'second' is where it breaks: its output held infinities" in code
    assert "(observed)" in code
    compile(code, "policy", "exec")


def run_code(policy, model):
    names = {}
    before = keras.config.dtype_policy()
    try:
        exec(policy_code(policy), names)
        assert keras.config.dtype_policy().name == policy.default
    finally:
        keras.config.set_dtype_policy(before)
    names["set_precision"](model)
    return names


def test_the_code_reaches_layers_by_name_by_attribute_and_without_a_path():
    model = attention_model()
    pins = ("attention/_softmax", "inner/wide", "both/forward_layer", "head")
    run_code(policy_for(model, *pins), model)
    layers = model_layers(model)
    assert all(layers[pin].dtype_policy.name == "float32" for pin in pins)
    nested = Nested(dtype="mixed_float16")
    nested(np.ones((1, 4), np.float32))
    for layer in model_layers(nested).values():
        layer.dtype_policy = "mixed_float16"
    run_code(policy_for(nested, "second"), nested)
    assert [layer.compute_dtype for layer in model_layers(nested).values()] == ["float16"] * 3 + ["float32"] * 2


@pytest.mark.parametrize("name", ['"); import os; ("', "two\nlines", "'''", "\\", "é\u2028x"])
def test_names_cannot_break_out_of_the_code(name):
    reason = Reason("rule", "observed", f"It broke at {name}.")
    policy = Policy(
        "mixed_float16",
        MadeFor(name, name, name, None, {name: "Dense"}),
        (Pin(name, "float32", "Dense\nimport os", (reason,)),),
        optimizer=OptimizerNeeds(True, 2.0**15),
    )
    names = {}
    exec(policy_code(policy), names)
    keras.config.set_dtype_policy("float32")
    assert set(names) - {"__builtins__"} == {"keras", "POLICIES", "set_precision"}
    assert names["POLICIES"] == {name: "float32"}


def test_no_pins_and_no_loss_scale_leave_two_lines_of_code():
    policy = Policy("mixed_bfloat16", MadeFor("m", "M", "r"))
    code = policy_code(policy)
    assert "set_precision" not in code
    assert "LossScaleOptimizer" not in code
    assert policy_text(policy) is None


def test_the_page_shows_the_same_layers_and_how_to_apply_them():
    policy = Policy("mixed_float16", MadeFor("m", "M", "r"), (Pin("head", "float32", "Dense"),))
    text = policy_text(policy)
    assert text is not None
    assert 'Dense(..., dtype="float32")  # head' in text
    assert 'precscope.apply_policy(model, "policy.yaml")' in text
    assert 'Dense(..., dtype="float32")  # head' in policy_code(replace(policy, proven=True))
