"""`precscope demo mnist --fault`: each fault is diagnosed, proven and repaired from the command line."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from precscope.cli import main
from precscope.commands import demo as demo_command
from precscope.errors import OptionsError
from precscope.probes import replayer
from precscope.probes.demos import mnist_faults
from precscope.reader import open_run


def test_the_commands_names_are_those_of_the_module():
    assert tuple(mnist_faults.FAULTS) == demo_command.FAULTS
    assert mnist_faults.__name__ == demo_command._FAULTS_MODULE


@pytest.mark.parametrize("fault", mnist_faults.FAULTS)
def test_each_fault_builds_and_is_whole_in_float32(fault):
    data = mnist_faults.load_data(fault)
    assert len(data.x) == 1500
    assert mnist_faults.FAULTS[fault] in data.description
    model = mnist_faults.build("float32", fault)
    assert np.isfinite(model.predict(data.x[:8], verbose=0)).all()
    assert keras.config.dtype_policy().name == "float32"
    rebuilt = keras.models.model_from_json(model.to_json())
    assert [type(layer) for layer in rebuilt.layers] == [type(layer) for layer in model.layers]


def test_a_tenth_of_the_labels_is_replaced_and_the_test_labels_are_right():
    wrong, right = mnist_faults.load_data("head"), mnist_faults.load_data("norm")
    assert 0.07 < np.mean(wrong.y != right.y) < 0.11  # of the replaced ones a tenth hits the right label
    np.testing.assert_array_equal(wrong.y_test, right.y_test)


def test_an_unknown_fault_and_a_fault_of_another_demo_are_errors(capsys):
    with pytest.raises(OptionsError, match=r"Unknown fault 'tail'. Expected one of: head, norm, range"):
        mnist_faults.build(fault="tail")
    assert main(["demo", "lstm", "--fault", "head"]) == 2
    assert "--fault belongs to the demo mnist" in capsys.readouterr().err


def test_from_the_fault_to_the_repaired_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(replayer, "_MOST_PASSES", 3)
    assert main(["demo", "mnist", "--fault", "range", "--epochs", "2"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "'square' and 'rescale'" in shown
    command = shown.partition("Prove it: precscope ")[2].partition(" Then ")[0].split()
    assert command[:2] == ["verify", "runs/mnist-range-demo"]
    assert main(command) == 0
    assert "'square' and 'rescale' in float32 suffice" in " ".join(capsys.readouterr().out.split())
    policy = "runs/mnist-range-demo/policy.yaml"
    assert main(["demo", "mnist", "--fault", "range", "--epochs", "2", "--apply", policy]) == 0
    assert "Policy: 2 layers changed." in capsys.readouterr().out
    broken, repaired = (open_run(f"runs/mnist-range-demo{ending}") for ending in ("", "-repaired"))
    assert broken.loss_scales[-1].steps_applied == 0
    assert repaired.loss_scales[-1].steps_skipped == 0
    assert repaired.results["loss"][-1] < repaired.results["loss"][0]
    assert repaired.verification is None
