"""The TensorFlow statistic against the NumPy reference: counts and extremes with zero tolerance."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from precscope.formats import FORMATS
from precscope.probes import tensor_rows
from precscope.probes.statistic import (
    EMPTY_ROW,
    Partials,
    decode_rows,
    finish,
    merge_rows,
    pad_to_bucket,
    partial_statistics,
    partial_statistics_of_many,
)
from precscope.statistics import HISTOGRAM_LIMIT, TensorStatistics, describe, merge

DTYPES = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}
COUNTS = ("count", "zeros", "subnormals", "positive_infinities", "negative_infinities", "nans", "histogram_count")


def wild(name: str, size: int) -> np.ndarray:
    """Values over 58 octaves, with zeros of both signs, infinities, NaN and subnormals among them."""
    rng = np.random.default_rng(size)
    values = rng.standard_normal(size) * np.exp2(rng.integers(-40, 18, size))
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42, -1e-7, 1e-40])
    if size >= special.size:
        values[rng.choice(size, special.size, replace=False)] = special
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32).astype(DTYPES[name])


def rows_of(x: np.ndarray, name: str, jit: bool, **keywords: int) -> np.ndarray:
    @tf.function(jit_compile=jit, autograph=False)
    def row(values: tf.Tensor) -> tf.Tensor:
        return finish([partial_statistics(values, FORMATS[name], **keywords)])

    return row(tf.constant(x)).numpy()


def assert_agrees(row: np.ndarray, expected: TensorStatistics) -> None:
    scalars, histograms = decode_rows(row)
    scalar = scalars[0]
    for field in COUNTS:
        assert scalar[field] == getattr(expected, field), field
    for field in ("min", "max", "smallest_nonzero"):
        assert float(scalar[field]) == (getattr(expected, field) or 0.0), field
    np.testing.assert_array_equal(histograms[0], expected.histogram)
    # Sums are taken in float32 there and in float64 here: 2**-24 an addition, with pairwise sums far fewer than 2**10.
    if expected.rms:
        assert float(scalar["rms"]) == pytest.approx(expected.rms, rel=2.0**-14)
        assert float(scalar["mean"]) == pytest.approx(expected.mean, abs=2.0**-14 * expected.rms)


@pytest.mark.parametrize("size", [0, 1, 129, 100_003])
@pytest.mark.parametrize("name", DTYPES)
def test_agrees_with_the_reference_under_xla(name: str, size: int) -> None:
    x = wild(name, size)
    assert_agrees(rows_of(x, name, jit=True), describe(x))


@pytest.mark.parametrize("name", ["float16", "float32"])
def test_agrees_with_the_reference_without_xla(name: str) -> None:
    x = wild(name, 5_001)
    assert_agrees(rows_of(x, name, jit=False), describe(x))


@pytest.mark.parametrize("size", [HISTOGRAM_LIMIT, HISTOGRAM_LIMIT + 1, 3_000_001])
def test_large_tensors_have_exact_counts_and_a_sampled_histogram(size: int) -> None:
    x = wild("float16", size)
    expected = describe(x)
    assert expected.histogram_is_exact == (size <= HISTOGRAM_LIMIT)
    assert_agrees(rows_of(x, "float16", jit=True), expected)


def test_a_hundred_million_elements() -> None:
    x = np.tile(wild("float16", 1_000_003), 100)
    once = describe(x[:1_000_003])
    scalars, histograms = decode_rows(rows_of(x, "float16", jit=True))
    assert scalars["count"][0] == x.size == 100_000_300
    for field in ("zeros", "subnormals", "positive_infinities", "negative_infinities", "nans"):
        assert scalars[field][0] == 100 * getattr(once, field)
    assert scalars["max"][0] == once.max
    assert scalars["histogram_count"][0] <= HISTOGRAM_LIMIT
    assert histograms.sum() <= scalars["histogram_count"][0]


def test_a_scalar_and_a_tensor_of_rank_three() -> None:
    for x in (np.array(-3.5, np.float16), wild("float16", 60).reshape(3, 4, 5)):
        assert_agrees(rows_of(x, "float16", jit=True), describe(x))


def test_float64_is_described_as_float32() -> None:
    x = np.array([1e-300, 1.5, -2.0, 0.0])
    assert_agrees(rows_of(x, "float32", jit=True), describe(x.astype(np.float32)))


@pytest.mark.parametrize("given", [7, 64, 500])
def test_an_unknown_batch_size_changes_no_count(given: int) -> None:
    x = wild("float16", 96 * 50).reshape(96, 50)
    row = tf.function(
        lambda values: finish([partial_statistics(values, FORMATS["float16"], batch=given)]),
        input_signature=[tf.TensorSpec([None, 50], tf.float16)],
        jit_compile=True,
        autograph=False,
    )
    scalars, histograms = decode_rows(row(x).numpy())
    expected = describe(x)
    for field in COUNTS[:-1]:
        assert scalars[field][0] == getattr(expected, field)
    assert 0 < histograms.sum() <= scalars["histogram_count"][0] <= expected.count


def test_small_tensors_share_few_sizes() -> None:
    x = wild("float16", 1_500)
    padded = pad_to_bucket(tf.constant(x))
    assert padded.shape[0] == 4**6
    partials = partial_statistics(padded, FORMATS["float16"], tf.constant(x.size, tf.int64))
    assert_agrees(finish([partials]).numpy(), describe(x))


def test_tensors_of_several_sizes_and_formats_finish_together() -> None:
    arrays = [("float16", 40_000), ("float32", 3), ("bfloat16", 300_000), ("float16", 0), ("float32", 20_000)]
    tensors = [wild(name, size) for name, size in arrays]

    @tf.function(jit_compile=True, autograph=False)
    def rows() -> tf.Tensor:
        names = [name for name, _ in arrays]
        return finish([partial_statistics(tf.constant(x), FORMATS[n]) for x, n in zip(tensors, names, strict=True)])

    for row, x in zip(rows().numpy(), tensors, strict=True):
        assert_agrees(row[None], describe(x))


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_packed_tensors_are_described_as_each_alone(name: str) -> None:
    # At the borders of a row, of what a histogram looks at, and of the groups that are reduced together.
    sizes = [1, 129, 1_024, 1_025, 2_048, 2_049, 2**14 + 1, 2**16, 2**16 + 1, 2**17, 2**17 + 1, 500_000]
    tensors = [wild(name, size) for size in sizes]

    @tf.function(jit_compile=True, autograph=False)
    def rows() -> tf.Tensor:
        found = partial_statistics_of_many([tf.constant(x) for x in tensors], FORMATS[name])
        order = [index for indices, _ in found for index in indices]
        assert sorted(order) == list(range(len(sizes)))
        return tf.gather(finish([partials for _, partials in found]), np.argsort(order))

    for row, x in zip(rows().numpy(), tensors, strict=True):
        assert_agrees(row[None], describe(x))


def test_merged_rows_are_the_statistics_of_both() -> None:
    first, second = wild("float16", 3_000), wild("float16", 77)
    rows = [rows_of(x, "float16", jit=True)[0] for x in (first, second)]
    merged = merge_rows(tf.constant(rows[0]), tf.constant(rows[1])).numpy()
    expected = merge(describe(first), describe(second))
    assert_agrees(merged[None], expected)
    np.testing.assert_array_equal(merge_rows(tf.constant(EMPTY_ROW), tf.constant(rows[0])).numpy(), rows[0])


def test_what_is_too_much_to_be_packed_is_described_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_rows, "MOST_PACKED", 3_000)
    tensors = [wild("float32", size) for size in (1_000, 2_500, 1_900)]

    @tf.function(jit_compile=True, autograph=False)
    def rows() -> tf.Tensor:
        described = tensor_rows.TensorRows(in_xla=True)
        parts = [described.part(tf.constant(x), "float32", None, "weight")[0] for x in tensors]
        assert [isinstance(part, Partials) for part in parts] == [False, True, False]
        finished = tensor_rows.finished_rows(parts)
        return tf.stack([finished[id(part)] for part in parts])

    for row, x in zip(rows().numpy(), tensors, strict=True):
        assert_agrees(row[None], describe(x))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_small_tensors_outside_xla_share_a_call_and_each_has_the_row_it_would_have_alone(dtype: str) -> None:
    tensors = [wild(dtype, size) for size in (3, 1_000, 0, *[200] * 70, 20_000)]
    alone = [tensor_rows._row(tf.constant(x), dtype).numpy() for x in tensors]

    @tf.function(autograph=False)
    def rows() -> tf.Tensor:
        described = tensor_rows.TensorRows(in_xla=False)
        parts = [described.part(tf.constant(x), dtype, None, "weight")[0] for x in tensors]
        finished = tensor_rows.finished_rows(parts)
        return tf.stack([finished[id(part)] for part in parts])

    np.testing.assert_array_equal(rows().numpy(), alone)
    calls = [op for op in rows.get_concrete_function().graph.get_operations() if "PartitionedCall" in op.type]
    assert len(calls) == 4  # two for 72 tensors, at most 64 in each; the empty and the large one have their own


def test_tensors_of_unknown_batch_share_a_call_and_are_described_whole_when_the_batch_is_larger() -> None:
    @tf.function(autograph=False)
    def rows(tensors: list[tf.Tensor]) -> tf.Tensor:
        described = tensor_rows.TensorRows(in_xla=False)
        parts = [described.part(x, "float16", 4, "activation")[0] for x in tensors]
        finished = tensor_rows.finished_rows(parts)
        return tf.stack([finished[id(part)] for part in parts])

    spec = [tf.TensorSpec([None, 250], tf.float16)] * 70
    concrete = rows.get_concrete_function(spec)
    calls = [op for op in concrete.graph.get_operations() if "PartitionedCall" in op.type]
    assert len(calls) == 2
    for batches in ([4] * 70, [*[4] * 30, 9, 0, 1, *[4] * 36, 17]):  # 1,024 elements, five times as many, none
        tensors = [wild("float16", 250 * batch).reshape(batch, 250) for batch in batches]
        for row, x in zip(concrete([tf.constant(x) for x in tensors]).numpy(), tensors, strict=True):
            assert_agrees(row[None], describe(x))
