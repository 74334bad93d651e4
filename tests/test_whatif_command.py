"""`precscope whatif`: other formats by layer, predicted, as a table and as JSON."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

from precscope.cli import main
from precscope.format_shares import what_if_report
from tests.synthetic_runs import SyntheticRun, healthy, values

SCALE = 2.0**10


@pytest.fixture
def float32_run(tmp_path):
    step = {
        "activation first": values(scale=3e4, dtype=np.float32),
        "activation second": values(dtype=np.float32, seed=1),
        "gradient first": values(scale=1e-8, dtype=np.float32, seed=2),
        "gradient second": values(scale=1e-3, dtype=np.float32, seed=3),
    }
    model = {"dtype_policy": "float32", "loss_scaling": "none"}
    run = SyntheticRun(steps=[step], samples=[{"loss_scale": None}], model=model)
    return step, run.write(tmp_path / "run")


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("scale", [None, SCALE])
def test_the_shares_hold_the_cast(float32_run, capsys, name, scale):
    step, path = float32_run
    words = ["whatif", str(path), "--format-name", name, "--format", "json"]
    assert main([*words, *(["--loss-scale", str(scale)] if scale else [])]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["confidence"], report["loss_scale"]) == ("predicted", scale or 1.0)
    dtype = np.float16 if name == "float16" else getattr(ml_dtypes, name)
    for layer in report["layers"]:
        (shares,) = layer["formats"]
        array = step[f"{layer['kind']} {layer['layer']}"] * (scale or 1.0 if layer["kind"] == "gradient" else 1.0)
        with np.errstate(over="ignore"):
            cast = array.astype(dtype).astype(np.float64)
        truth = {"flushed": np.mean(cast == 0), "overflow": np.mean(~np.isfinite(cast))}
        for kind, part in truth.items():
            assert shares[kind]["lower"] - 1e-12 <= part <= shares[kind]["upper"] + 1e-12, (layer["layer"], kind)


def test_the_harmed_layers_come_first_and_a_scale_mends_gradients_only(float32_run, tmp_path):
    from precscope.reader import open_run

    run = open_run(float32_run[1])
    plain = what_if_report(run, ["float16"])
    assert [(layer.layer, layer.kind) for layer in plain.layers[:2]] == [
        ("first", "activation"),
        ("first", "gradient"),
    ]
    scaled = what_if_report(run, ["float16"], 2.0**15)
    flushed = {(x.layer, x.kind): x.formats[0].flushed.upper for x in scaled.layers}
    assert plain.layers[1].formats[0].flushed.lower > 0.9
    assert flushed["first", "gradient"] < 0.01
    assert scaled.layers[0].formats == plain.layers[0].formats


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_says_that_it_is_predicted_and_fits(float32_run, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for words in ([], ["--format-name", "float16", "--loss-scale", "1024"]):
        assert main(["whatif", str(float32_run[1]), *words]) == 0
        text = capsys.readouterr().out
        assert "Predicted from the histograms of 1 sampled step, not measured" in " ".join(text.split())
        assert "best fixed" in text
        assert max(map(len, text.splitlines())) <= width


def test_what_cannot_be_predicted_is_an_error_in_one_line(tmp_path, capsys):
    empty = SyntheticRun().write(tmp_path / "empty")
    assert main(["whatif", str(empty)]) == 2
    assert "has no sampled step, so there is nothing to predict from" in capsys.readouterr().err
    run = SyntheticRun(steps=[healthy()]).write(tmp_path / "run")
    assert main(["whatif", str(run), "--loss-scale", "-3"]) == 2
    assert "--loss-scale -3: expected a positive number" in capsys.readouterr().err
