"""What layers' own code risks, seen while the sampled step is traced, and cited by the findings on these layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import precscope
from precscope.advice import Evidence, analyze
from precscope.advice.actions import advise
from precscope.lint_result import LintFinding
from precscope.probes import traced_lint
from precscope.probes.lint import lint_model
from precscope.reports.page import render_page
from precscope.reports.report_data import report_data
from precscope.reports.report_view import report_view
from precscope.reports.terminal import render_report
from tests.synthetic_runs import SyntheticRun, healthy, with_bad

if TYPE_CHECKING:
    from pathlib import Path

    from precscope.reader import Run

layers = keras.layers
OPTIONS: dict[str, Any] = {"every": 2, "profile_steps": 0, "device_interval_s": 0.0, "reference": True}


class Norm(keras.layers.Layer):
    """A norm written by hand, with an epsilon that float16 does not hold, and a layer inside."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.inside = layers.Dense(8, name="inside", dtype=self.dtype_policy)

    def call(self, x: Any) -> Any:
        x = self.inside(x)
        squares = tf.square(x * 300)
        return x * tf.math.rsqrt(tf.reduce_sum(squares, -1, keepdims=True) + 1e-9)


def build() -> keras.Model:
    keras.utils.set_random_seed(1)
    head = [layers.Dense(2, name="logits", dtype="mixed_float16"), layers.Softmax(name="last", dtype="mixed_float16")]
    norm = Norm(name="norm", dtype="mixed_float16")
    model = keras.Sequential([keras.Input((6,)), norm, *head])
    loss = keras.losses.SparseCategoricalCrossentropy()
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-3)), loss, jit_compile=False)
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("lint") / "run"
    x = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    model = build()
    with precscope.profile(model, path, **OPTIONS):
        model.fit(x, (x.sum(1) > 0).astype(np.int32), batch_size=8, verbose=0)
    return precscope.open_run(path)


def test_the_session_sees_what_lint_sees_of_the_layers_and_their_lines(run: Run):
    expected = {item for item in lint_model(build()).findings if item.layer is not None}
    assert set(run.lint) == expected
    assert {item.check for item in run.lint if item.layer == "norm"} == {
        "constant_vanishes",
        "float16_rsqrt",
        "float16_square",
    }
    assert all(item.layer != "norm/inside" for item in run.lint)  # a Dense does nothing dangerous
    (square,) = (item for item in run.lint if item.check == "float16_square")
    assert square.place is not None
    assert square.place.endswith("squares = tf.square(x * 300)")


def test_a_finding_names_the_op_and_the_line_and_offers_another_constant(run: Run):
    (finding,) = (item for item in analyze(run) if item.layer == "norm" and item.severity != "info")
    assert finding.id == "measured_error"  # all finite, and wrong: the squares overflow, and their root is divided by
    assert [item.check for item in finding.risks] == ["float16_square", "constant_vanishes", "float16_rsqrt"]
    assert "Or: give the layer a constant that float16 can hold" in advise(finding)


LAST = LintFinding("float16_softmax", "info", "second", "Softmax in float16.", "Keep the last one in float32.")
MASK = LintFinding(
    "constant_overflows", "warning", "second", "A constant that is infinite.", "Take -3e4.", "net.py:3: x"
)
SIZE = LintFinding("float16_square", "warning", "first", "Squares in float16.", "Cast before.")


def overflowing(tmp_path: Path, *lint: LintFinding) -> Run:
    bad = {"activation second": with_bad(healthy()["activation second"], np.inf)}
    made = SyntheticRun(steps=[healthy(), healthy(1) | bad]).read(tmp_path / "run")
    return replace(made, lint=lint)


def test_what_is_seen_of_other_layers_is_not_cited(tmp_path: Path):
    (finding,) = (item for item in analyze(overflowing(tmp_path, SIZE)) if item.id == "activation_overflow")
    assert (finding.layer, finding.risks) == ("second", ())


def test_the_report_cites_in_every_format(tmp_path: Path):
    evidence = Evidence(overflowing(tmp_path, LAST, MASK, SIZE))
    (view,) = (item for item in report_view(evidence).findings if "'second' is where it breaks" in item.sentence)
    assert view.risks == ("A constant that is infinite. net.py:3: x", "Softmax in float16.")
    (data,) = (item for item in report_data(evidence).findings if item.id == "activation_overflow")
    assert data.risks == (MASK, LAST)
    assert "In its code: A constant that is infinite. net.py:3: x" in render_page(evidence.run)
    lines = [str(line) for line in render_report(report_view(evidence), 100)]
    assert "     In its code: A constant that is infinite. net.py:3: x" in lines
    assert data.alternative == "change_constant"


def test_it_is_written_and_read_again(tmp_path: Path):
    path = SyntheticRun(steps=[healthy()], lint=[MASK, LAST]).write(tmp_path / "run")
    assert precscope.open_run(path).lint == (MASK, LAST)


def test_where_it_fails_it_is_off_and_the_samples_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def failing(*arguments: Any) -> Any:
        raise RuntimeError("as planned")

    monkeypatch.setattr(traced_lint, "check_layer_ops", failing)
    model = build()
    with precscope.profile(model, tmp_path / "run", **OPTIONS):
        model.fit(np.ones((32, 6), np.float32), np.zeros(32, np.int32), batch_size=8, verbose=0)
    found = precscope.open_run(tmp_path / "run")
    assert len(found.samples) > 0
    assert found.lint == ()
    (told,) = [n.message for n in found.notices if "as planned" in n.message]
    assert told.startswith("what layers risk in float16 is not looked at: RuntimeError: as planned (traced_lint.py:")
