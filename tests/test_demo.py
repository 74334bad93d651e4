"""The demo: its data, its model in each policy, and the command itself."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import precscope
from precscope.commands.demo import demo
from precscope.errors import OptionsError, PrecScopeError, RunDirectoryError
from precscope.origin_records import DATA_ID
from precscope.probes.demos import DEMOS, POLICIES, DemoData, load_demo
from precscope.probes.demos.digits import load_digits, resize_bilinear
from precscope.probes.tensorflow_startup import _information_dropped

if TYPE_CHECKING:
    from pathlib import Path

keras = pytest.importorskip("keras")
mnist = load_demo("mnist")
global_policy = load_demo("mnist").global_policy


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


def layer_types(model: Any) -> Counter[str]:
    return Counter(type(layer).__name__ for layer in model.layers)


@pytest.mark.parametrize("policy", POLICIES)
def test_resnet18_has_four_stages_of_two_basic_blocks(policy: str) -> None:
    model = load_demo("resnet18").build(policy, image_size=32, width=4)
    types = layer_types(model)
    # The stem, 16 convolutions in 8 blocks, and 3 shortcuts where the shape changes.
    assert (types["Conv2D"], types["BatchNormalization"], types["Add"]) == (20, 20, 8)
    widths = [layer.filters for layer in model.layers if layer.name.endswith("_2_conv")]
    assert widths == [4, 4, 8, 8, 16, 16, 32, 32]
    assert model.get_layer("stage4_block2_relu").output.shape == (None, 1, 1, 32)
    assert model.get_layer("stage1_block1_1_conv").compute_dtype == policy.removeprefix("mixed_")
    assert model.get_layer("probabilities").compute_dtype == "float32"
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
    assert keras.config.dtype_policy().name == "float32"


def test_resnet18_is_the_known_one_at_its_full_size() -> None:
    model = load_demo("resnet18").build("float32", image_size=224)
    trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert trainable == 11_689_512 - 513_000 + 5_130  # torchvision's resnet18, with 10 classes instead of 1,000


def test_resnet18_is_bounded_and_says_so_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: [])
    data = load_demo("resnet18").load_data()
    assert data.x.shape == (192, 64, 64, 3)
    assert (data.x.min(), data.x.max()) == (0.0, 1.0)
    np.testing.assert_array_equal(data.x[..., 0], data.x[..., 2])
    assert "real handwritten digits" in data.description
    assert "on a CPU this is slow: the images are 64x64 instead of 224x224" in data.description
    assert "stops after 6 steps" in data.description
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: ["GPU:0"])
    assert load_demo("resnet18")._size().image == 224


@pytest.mark.parametrize("policy", POLICIES)
def test_lstm_has_a_head_in_float32(policy: str) -> None:
    model = load_demo("lstm").build(policy, units=8)
    lstm, head = model.layers
    assert (model.input_shape, lstm.units) == ((None, 100, 1), 8)
    assert (lstm.compute_dtype, head.compute_dtype) == (policy.removeprefix("mixed_"), "float32")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")


def test_lstm_data_are_uniform_and_their_target_has_unit_variance() -> None:
    data = load_demo("lstm").load_data()
    assert (data.x.shape, data.x_test.shape) == ((2048, 100, 1), (512, 100, 1))
    assert (data.x.min() >= 0, data.x.max() < 1) == (True, True)
    assert abs(data.y.var() - 1) < 0.1  # by sampling: its standard error is 0.03
    np.testing.assert_allclose(data.y[0], (data.x[0, 90:].mean() - 0.5) * np.sqrt(120), rtol=1e-5)  # of float32 sums


def test_data_for_a_bench_are_full_batches_in_the_global_policy() -> None:
    with global_policy("mixed_bfloat16"):
        model, dataset = load_demo("resnet18").build_for_bench(batch_size=3, image_size=32, width=4)
        assert model.get_layer("stem_conv").compute_dtype == "bfloat16"
    assert [tuple(x.shape) for x, _ in dataset] == [(3, 32, 32, 3)] * 4
    for name in ("mnist", "lstm"):
        model, dataset = load_demo(name).build_for_bench(batch_size=64)
        assert model.compiled
        assert model.compute_dtype == "float32"
        assert {x.shape[0] for x, _ in dataset} == {64}


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
    assert {layer.policy for layer in run.layers if layer.id != DATA_ID} == {"mixed_float16"}

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
