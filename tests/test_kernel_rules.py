"""cuDNN's recurrent layers in bfloat16: told from the op that was traced, whether or not harm was seen."""

from __future__ import annotations

import sys
from dataclasses import replace

import keras
import ml_dtypes
import numpy as np
import pytest

from precscope.advice import analyze, keep_float32
from precscope.lint_result import UNWRITTEN_MEMORY, LintFinding
from precscope.probes.lint import lint_model
from tests.synthetic_runs import SyntheticRun, layer

SEEN = LintFinding(UNWRITTEN_MEMORY, "error", "lstm", "It reads memory that nobody wrote.", "Give it another dtype.")
LAYERS = (
    layer("lstm", type="LSTM", compute="bfloat16", policy="mixed_bfloat16"),
    layer("head", "lstm", compute="float32", policy="float32"),
)


def run_with(tmp_path, gradient, lint=(SEEN,)):
    step = {
        "activation lstm": np.ones((2, 2), ml_dtypes.bfloat16),
        "gradient lstm": np.full((2, 2), gradient, ml_dtypes.bfloat16),
    }
    return replace(SyntheticRun(LAYERS, [step] * 3).read(tmp_path / "run"), lint=lint)


@pytest.mark.parametrize(
    ("gradient", "severity", "confidence"), [(0.5, "warning", "predicted"), (np.nan, "error", "observed")]
)
def test_the_layer_is_named_first_whether_or_not_it_did_harm(tmp_path, gradient, severity, confidence):
    findings = analyze(run_with(tmp_path, gradient))
    first = findings[0]
    assert (first.id, first.layer, first.action) == ("unwritten_memory", "lstm", "keep_float32")
    assert (first.severity, first.confidence, first.risks) == (severity, confidence, (SEEN,))
    assert keep_float32(findings) == ("lstm",)


def test_without_the_op_nothing_is_said(tmp_path):
    assert not [f for f in analyze(run_with(tmp_path, np.nan, lint=())) if f.id == "unwritten_memory"]


@pytest.mark.parametrize(
    ("policy", "is_found"), [("mixed_bfloat16", True), ("mixed_float16", False), ("float32", False)]
)
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_lint_sees_the_op_where_keras_chooses_cudnn(cell, policy, is_found, monkeypatch):
    module = sys.modules["keras.src.backend.tensorflow.rnn"]
    monkeypatch.setattr(module, "cudnn_ok", lambda *_, **__: True)  # as on a GPU; the op is traced and never run
    model = keras.Sequential([keras.Input((5, 3)), getattr(keras.layers, cell)(8, name="rnn", dtype=policy)])
    model.add(keras.layers.Dense(1, dtype="float32"))
    found = [f for f in lint_model(model).findings if f.check == UNWRITTEN_MEMORY]
    assert [(f.layer, f.severity) for f in found] == ([("rnn", "error")] if is_found else [])
