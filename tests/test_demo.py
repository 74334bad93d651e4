"""The demo: its data, its model in each policy, and the command itself."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner, Result

import precscope
from precscope.commands.demo import demo
from precscope.errors import OptionsError, PrecScopeError, RunDirectoryError
from precscope.probes.demos import DEMOS, POLICIES, DemoData, load_demo
from precscope.probes.demos.digits import load_digits, resize_bilinear
from precscope.probes.tensorflow_startup import _information_dropped

if TYPE_CHECKING:
    from pathlib import Path

keras = pytest.importorskip("keras")
mnist = load_demo("mnist")


def test_digits_are_brought_to_the_size_of_mnist() -> None:
    images, labels = load_digits()
    assert images.shape == (1797, 28, 28)
    assert images.dtype == np.uint8
    assert labels.shape == (1797,)
    assert (images.min(), images.max()) == (0, 255)
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as the data set's page


def test_bilinear_resize_keeps_corners_and_planes() -> None:
    rows, columns = np.meshgrid(np.arange(3.0), np.arange(3.0), indexing="ij")
    (resized,) = resize_bilinear((2 * rows + columns)[None], 5)
    expected_rows, expected_columns = np.meshgrid(np.linspace(0, 2, 5), np.linspace(0, 2, 5), indexing="ij")
    np.testing.assert_array_equal(resized, 2 * expected_rows + expected_columns)  # halves are exact


@pytest.mark.parametrize("policy", POLICIES)
def test_model_is_the_one_described_and_global_policy_is_kept(policy: str) -> None:
    model = mnist.build(policy)
    assert [type(layer).__name__ for layer in model.layers] == ["Flatten", "Dense", "Dropout", "Dense"]
    flatten, hidden, dropout, head = model.layers
    assert (hidden.units, hidden.activation.__name__) == (128, "relu")
    assert (head.units, head.activation.__name__) == (10, "softmax")
    assert dropout.rate == 0.2
    assert {layer.dtype_policy.name for layer in (model, flatten, hidden, dropout, head)} == {policy}
    optimizer = model.optimizer
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
    assert isinstance(getattr(optimizer, "inner_optimizer", optimizer), keras.optimizers.Adam)
    assert keras.config.dtype_policy().name == "float32"


def load_data_in(keras_home: Path, proxy: str) -> str:
    """Load the demo's data in a fresh process, as Keras reads its folder once, and return what is said of them."""
    code = """
from precscope.probes.demos import load_demo
data = load_demo("mnist").load_data(network_timeout_s=0.2)
print(data.x.shape, data.x.dtype, data.x.min(), data.x.max(), data.x_test.shape, data.epochs, data.description)
"""
    environment = {**os.environ, "KERAS_HOME": str(keras_home), "https_proxy": proxy, "no_proxy": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_a_network_that_never_answers_leads_to_the_digits(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        said = load_data_in(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "(1500, 28, 28) float32 0.0 1.0 (297, 28, 28)" in said
    assert "1,797 real handwritten digits" in said
    assert "Not MNIST" in said
    assert "timed out" in said


def test_mnist_is_taken_where_keras_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = np.full((4, 28, 28), 255, np.uint8), np.arange(4, dtype=np.uint8)
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: ((images, labels), (images[:2], labels[:2])))
    data = mnist.load_data()
    assert data.description.startswith("MNIST, 4 images of 28x28 to train on and 2 to test on")
    assert data.x.dtype == np.float32
    assert data.x.max() == 1.0
    assert (len(data.x), len(data.x_test)) == (4, 2)


def test_registry_names_what_exists() -> None:
    for name in DEMOS:
        assert callable(load_demo(name).build)
        assert callable(load_demo(name).load_data)
    with pytest.raises(OptionsError, match=r"Unknown demo 'minst'. Expected one of: mnist"):
        load_demo("minst")


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the demo train on 180 digits for one epoch, and ask no network."""
    images, labels = load_digits()
    x, y = images[:200].astype(np.float32) / np.float32(255), labels[:200]
    data = DemoData("few digits.", x[:180], y[:180], x[180:], y[180:], epochs=1)
    monkeypatch.setattr(mnist, "load_data", lambda: data)


def run_demo(*arguments: str) -> Result:
    return CliRunner().invoke(demo, arguments, catch_exceptions=False)


@pytest.mark.usefixtures("few_digits")
def test_demo_trains_prints_its_report_and_replaces_it_only_when_told(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    result = run_demo("--run-dir", str(run_dir))
    assert result.exit_code == 0
    for words in ("Data: few digits.", "mnist_mlp, 101,770 parameters, mixed_float16; 6 steps", "Held-out accuracy 0."):
        assert words in result.output
    assert f"precscope report {run_dir}" in result.output
    assert "dense" in result.output  # the report names the layers
    run = precscope.open_run(run_dir)
    assert run.status == "finished"
    assert {sample.step for sample in run.samples} >= {2, 3, 4}  # so few steps are all due
    assert {layer.policy for layer in run.layers} == {"mixed_float16"}

    with pytest.raises(RunDirectoryError, match="overwrite"):
        run_demo("--run-dir", str(run_dir))
    assert precscope.open_run(run_dir).record == run.record

    again = run_demo("--run-dir", str(run_dir), "--overwrite", "--policy", "float32", "--epochs", "2")
    assert "float32; 12 steps" in again.output
    assert {layer.policy for layer in precscope.open_run(run_dir).layers} == {"float32"}


def test_start_up_messages_are_dropped_and_errors_kept(capfd: pytest.CaptureFixture[str]) -> None:
    lines = (
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
        "I0000 00:00:1795459922.396994   22868 cudart_stub.cc:31] Could not find cuda drivers on your machine.",
        "2026-11-23 18:50:00.000000: I tensorflow/core/platform/cpu_feature_guard.cc:210] This binary is optimized.",
        "E0000 00:00:1795459922.396994   22868 cuda_dnn.cc:8310] Unable to register cuDNN factory",
        "Traceback (most recent call last):",
    )

    def fail_to_load() -> None:
        os.write(2, "\n".join(lines).encode())
        raise ImportError("libcudart")

    with pytest.raises(ImportError, match="libcudart"), _information_dropped():
        fail_to_load()
    assert capfd.readouterr().err == "\n".join(lines[3:])


def test_demo_without_tensorflow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as if it were not installed
    with pytest.raises(PrecScopeError, match=r'tensorflow cannot be imported.*pip install "precscope\[tensorflow\]"'):
        run_demo()
