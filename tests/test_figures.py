"""Figures and tables of a run for notebooks."""

from __future__ import annotations

import builtins

import numpy as np
import pytest

from precscope.advice import Evidence
from precscope.errors import PrecScopeError
from precscope.reports.memory_view import memory_series
from precscope.reports.palette import PAGE_BANDS
from precscope.reports.tensor_groups import history, tensor_groups
from tests.synthetic_runs import SyntheticRun, healthy, values
from tests.test_page import HOSTILE, RUNS, hostile_run, overflowing


@pytest.fixture
def run(tmp_path):
    return SyntheticRun(steps=[healthy(), overflowing(1)], scales=[(0, 32768.0, 0), (10, 16384.0, 2)]).read(
        tmp_path / "r"
    )


@pytest.mark.parametrize("name", ["range_map", "training", "time_and_risk", "memory", "reference_errors"])
@pytest.mark.parametrize("case", RUNS)
def test_every_figure_of_every_run_is_drawn_or_says_why_not(case, name, tmp_path):
    figure = getattr(RUNS[case].read(tmp_path / "run").figures, name)()
    assert figure.data or figure.layout.title.text
    figure.to_json()


def colored(figure, panel, row):
    """The bands in which a row of the range map has values."""
    line = np.array(figure.data[panel].z, float)[row]
    return {int(band) for band in line[~np.isnan(line)]}


def test_range_map_puts_values_into_the_bands_of_the_format(tmp_path):
    step = {"activation first": np.full(64, 2.0**-20, np.float32), "gradient first": np.full(64, 1.0, np.float32)}
    run = SyntheticRun(steps=[step], samples=[{"loss_scale": 2.0**10}]).read(tmp_path / "run")
    assert colored(run.figures.range_map("float16"), 0, 1) == {1}  # subnormal
    assert colored(run.figures.range_map("bfloat16"), 0, 1) == {2}  # normal
    assert colored(run.figures.range_map("float8_e5m2"), 0, 1) == {0}  # flushed
    assert colored(run.figures.range_map("float16"), 1, 1) == {2}
    assert colored(run.figures.range_map("float16", loss_scale=2.0**27), 1, 1) == {3}  # overflow


@pytest.mark.parametrize(
    ("words", "message"), [(("float17",), "Unknown float format"), (("float16", 0.0), "positive, finite")]
)
def test_range_map_refuses_what_it_cannot_show(run, words, message):
    with pytest.raises(ValueError, match=message):
        run.figures.range_map(*words)


def test_training_marks_skipped_steps_and_says_why(run):
    (skipped,) = [trace for trace in run.figures.training().data if trace.name.startswith("skipped")]
    assert skipped.name == "skipped, healthy"
    assert list(skipped.customdata[0][1:]) == [2, "the scale had been doubled once too often: healthy"]


def test_names_in_figures_are_text(tmp_path):
    ticks = hostile_run(tmp_path / "run").figures.range_map().layout.yaxis.ticktext
    assert "<" not in "".join(ticks)
    assert len(ticks) == len(HOSTILE)
    assert max(map(len, ticks)) < 100


def test_groups_and_history_agree_with_the_samples(run):
    evidence = Evidence(run)
    groups = tensor_groups(evidence)
    past = history(evidence, groups)
    group = groups.members[run.find("second", "activation")[0].index]
    both = np.concatenate([healthy()["activation second"], values(seed=1)[2:]]).astype(float)
    assert groups.totals["count"][group] == 2000
    assert (groups.infinities[group], groups.totals["nans"][group]) == (1, 1)
    assert groups.absmax[group] == np.abs(both).max()
    assert groups.smallest[group] == np.abs(both[both != 0]).min()
    assert groups.histograms[group].sum() == groups.nonzero[group] == np.count_nonzero(both)
    assert past.has_nonfinite[group].tolist() == [False, True]
    assert past.absmax[group].max() == groups.absmax[group]
    assert (past.first_step.tolist(), past.last_step.tolist()) == ([0, 10], [0, 10])


def test_a_long_history_is_told_in_stretches(tmp_path):
    steps = [{"activation first": np.full(4, 2.0**place, np.float32)} for place in range(10)]
    evidence = Evidence(SyntheticRun(steps=steps).read(tmp_path / "run"))
    past = history(evidence, tensor_groups(evidence), most=5)
    assert past.last_step.tolist() == [10, 30, 50, 70, 90]
    assert past.absmax.tolist() == [[2.0**place for place in (1, 3, 5, 7, 9)]]


def test_memory_of_a_run_without_devices_is_nothing(run):
    assert memory_series(run) == ()


def test_a_run_shows_itself_in_a_notebook(run, tmp_path):
    html = run._repr_html_()
    assert "Keep 1 of 4 layers in float32: &#39;second&#39;" in html
    assert "<script" not in html
    assert "<img" not in hostile_run(tmp_path / "hostile")._repr_html_()


def test_a_run_as_a_data_frame(run):
    frame = run.to_pandas()
    assert len(frame) == 2 * len(run.tensors)
    row = frame[(frame.layer == "second") & (frame.kind == "activation") & (frame.step == 10)].iloc[0]
    known = run.statistics(1, run.find("second", "activation")[0].index)
    assert (row["count"], row.nans, row.positive_infinities) == (1000, 1, 1)
    assert (row["max"], row.smallest_nonzero) == pytest.approx((known.max, known.smallest_nonzero))


def test_a_data_frame_has_no_number_without_meaning(tmp_path):
    frame = RUNS["only NaN"].read(tmp_path / "run").to_pandas()
    assert frame[["min", "max", "mean", "rms", "smallest_nonzero"]].isna().all(axis=None)
    assert (frame.nans == frame["count"]).all()


def test_without_pandas_it_says_what_to_install(run, monkeypatch):
    imported = builtins.__import__

    def refuse(name, *arguments, **options):
        if name == "pandas":
            raise ImportError(name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(PrecScopeError, match=r"needs pandas.*pip install pandas"):
        run.to_pandas()


#: Dichromats' view of linear RGB (Viénot, Brettel and Mollon, 1999).
DICHROMATS = {
    "protanopia": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deuteranopia": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
}


@pytest.mark.parametrize("theme", PAGE_BANDS)
@pytest.mark.parametrize("sight", DICHROMATS)
def test_the_colour_blind_tell_the_bands_apart(theme, sight):
    seen = [_lab(np.array(DICHROMATS[sight]) @ _linear(color)) for color in PAGE_BANDS[theme].values()]
    distances = [np.linalg.norm(one - other) for place, one in enumerate(seen) for other in seen[:place]]
    assert min(distances) > 20  # in CIELAB, where 2 is just seen


def _linear(color):
    parts = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def _lab(linear):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = np.cbrt(np.clip(xyz / [0.9505, 1, 1.089], 0.008856, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
