"""A few cases of the zoo, trained and judged; `python -m benchmarks.advice` does them all."""

from __future__ import annotations

import pytest

from precscope.probes.internals.layer_tree import walk_layers
from tests.zoo.animals import ZOO, case_named
from tests.zoo.case import build
from tests.zoo.score import profile_case, score_case
from tests.zoo.verify_labels import trials


def test_cases_have_names_of_their_own_and_reasons():
    assert len({case.name for case in ZOO}) == len(ZOO)
    assert all(case.reason.endswith(".") for case in ZOO)
    assert sum(case.is_healthy for case in ZOO) >= 9


@pytest.mark.parametrize("case", [case for case in ZOO if case.name not in ("resnet18", "dcgan")], ids=lambda c: c.name)
def test_labels_name_layers_that_exist(case):
    layers = dict(walk_layers(build(case)))
    named = case.truth | case.suspects | set(case.extras) | ({case.source_layer} - {None})
    assert named <= set(layers)
    assert all(layers[name].compute_dtype in ("float16", "bfloat16") for name in case.truth)


@pytest.mark.filterwarnings("ignore")
def test_a_label_is_verified_by_training():
    assert {trial.what: trial.as_labelled for trial in trials(case_named("exp_12"))} == {
        "float32": True,
        "plain mixed_float16": True,
        "truth in float32": True,
        "the same less exp": True,
        "the same less log1p": True,
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["exp_12", "cumsum_2048", "low_loss_scale", "input_7e4", "layer_norm_6e4"])
def test_the_advice_on_a_case_is_right(tmp_path, name):
    case = case_named(name)
    score = score_case(case, profile_case(case, tmp_path / "run", every=20, steps=60))
    assert score.is_right, [(f.severity, f.id, f.action, f.layer, f.consumers) for f in score.findings]
