"""The loss scale against flushed and overflowing gradients, checked by casting the very values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from precscope.formats import FORMATS
from precscope.scale_curve import SCALES, gradient_totals, scale_curve
from tests.synthetic_runs import SyntheticRun, values, with_bad

INF = float("inf")
SCALE = 2.0**10


def gradients(scale=SCALE, dtype=np.float32):
    """A large gradient at 'second', a tiny one at 'first', as float32 values that carry `scale`."""
    return {
        "gradient first": (values(scale=1e-6, dtype=np.float64) * scale).astype(dtype),
        "gradient second": (values(scale=0.05, dtype=np.float64, seed=1) * scale).astype(dtype),
    }


def curve_of(tmp_path, *steps, scales=(SCALE,), **options):
    samples = [{"loss_scale": scale} for scale in scales]
    return scale_curve(SyntheticRun(steps=list(steps), samples=samples).read(tmp_path / "run"), **options)


def test_the_shares_are_those_of_the_cast(tmp_path):
    curve = curve_of(tmp_path, gradients(), also_float32=True)
    plain = {key: array.astype(np.float64) / SCALE for key, array in gradients().items()}
    for layer in curve.layers:
        exact = plain[f"gradient {layer.layer}"]
        for column, scale in enumerate(SCALES):
            with np.errstate(over="ignore"):
                cast = (exact * scale).astype(np.float32).astype(np.float16)
            assert layer.flushed[column] <= np.mean(cast == 0)
            assert layer.overflowed[column] >= np.mean(np.isinf(cast))
        # Octave edges: the flushed share is exact up to values that sit on the limit, and none does.
        assert layer.flushed[0] == pytest.approx(np.mean(exact.astype(np.float16) == 0), abs=1e-12)


def test_the_best_scale_leaves_two_bits_and_names_the_layer_that_limits_it(tmp_path):
    curve = curve_of(tmp_path, gradients(), also_float32=True)
    largest = float(np.abs(gradients()["gradient second"]).max()) / SCALE
    assert curve.limiting_layer == "second"
    assert curve.largest_gradient == pytest.approx(largest)
    assert curve.best_scale * largest * 4 <= FORMATS["float16"].max < curve.best_scale * largest * 8
    assert curve.headroom_bits == pytest.approx(math.log2(FORMATS["float16"].max / largest / SCALE))
    assert curve.layers[0].largest_scale > curve.layers[1].largest_scale
    assert curve.layers[0].flushed[0] > 0.01 > curve.layers[0].flushed[15]


def test_samples_at_different_scales_describe_the_same_gradients(tmp_path):
    one = curve_of(tmp_path / "a", gradients(), gradients(), scales=(SCALE, SCALE), also_float32=True)
    two = curve_of(tmp_path / "b", gradients(), gradients(SCALE * 64), scales=(SCALE, SCALE * 64), also_float32=True)
    assert (one.best_scale, one.limiting_layer) == (two.best_scale, two.limiting_layer)
    assert one.layers == two.layers
    assert two.headroom_bits == pytest.approx(one.headroom_bits - 6)


def test_an_overflowed_gradient_is_left_out_and_the_other_samples_count(tmp_path):
    skipped = {key: with_bad(array, INF) for key, array in gradients().items()}
    curve = curve_of(tmp_path, skipped, gradients(), scales=(SCALE, SCALE), also_float32=True)
    alone = curve_of(tmp_path / "alone", gradients(), also_float32=True)
    assert curve.layers == alone.layers
    assert curve.samples == 2


def test_of_a_mixed_run_only_float16_counts(tmp_path):
    curve = curve_of(tmp_path, gradients() | {"gradient first": values()})
    assert [layer.layer for layer in curve.layers] == ["first"]  # the gradient of 'second' is float32


def test_gradients_too_large_for_any_scale(tmp_path):
    curve = curve_of(
        tmp_path, {"gradient first": values(scale=3e4, dtype=np.float32)}, scales=(1.0,), also_float32=True
    )
    assert (curve.best_scale, curve.flushed_at_best) == (None, None)
    assert curve.headroom_bits < 2


def test_without_gradients_there_is_no_curve(tmp_path):
    assert curve_of(tmp_path, {"activation first": values()}) is None
    assert curve_of(tmp_path / "none") is None
    assert curve_of(tmp_path / "bad", {"gradient first": with_bad(values(), INF)}) is None


def test_a_long_run_shows_some_histograms_and_all_extremes(tmp_path, monkeypatch):
    monkeypatch.setattr("precscope.scale_curve._MOST_HISTOGRAMS", 2)
    steps = [{"gradient first": np.full(8, 2.0**place, np.float16)} for place in range(5)]
    run = SyntheticRun(steps=steps, samples=[{"loss_scale": SCALE}] * 5).read(tmp_path / "run")
    (totals,) = gradient_totals(run, run.tensors)
    assert totals.histograms.sum() == 2 * 8  # the first of every three
    assert (totals.largest, totals.smallest, totals.is_exact) == (16.0, 1.0, False)
    assert totals.samples == 5
