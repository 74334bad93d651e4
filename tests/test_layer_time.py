"""Sums by layer of hand-made records."""

from __future__ import annotations

from typing import Any

import pytest

from precscope.layer_time import LayerTime, layer_times
from precscope.op_records import OpRecord


def make_record(layer: str | None, direction: Any, time_ms: float, **changes: Any) -> OpRecord:
    values: dict[str, Any] = {"op": "op", "op_type": None, "kernel": "kernel", "dtype": "float16", "count": 4}
    values |= {"tensor_core": False, "device": "gpu:0", **changes}
    return OpRecord(layer=layer, direction=direction, device_time_ns=round(time_ms * 1e6), **values)


def rows_of(*records: OpRecord, steps: int = 2) -> dict[str, LayerTime]:
    return {row.layer or row.part: row for row in layer_times(records, steps)}


def test_times_are_per_step_and_shares_add_up() -> None:
    rows = rows_of(
        make_record("a", "forward", 6.0),
        make_record("a", "forward", 2.0),
        make_record("a", "backward", 8.0),
        make_record("b", "forward", 3.0),
        make_record(None, "optimizer", 1.0),
    )
    assert (rows["a"].forward_ms, rows["a"].backward_ms, rows["a"].total_ms) == (4.0, 4.0, 8.0)
    assert (rows["b"].forward_ms, rows["b"].backward_ms, rows["b"].total_ms) == (1.5, None, 1.5)
    assert (rows["optimizer"].forward_ms, rows["optimizer"].total_ms) == (None, 0.5)
    assert [rows[name].share for name in ("a", "b", "optimizer")] == [0.8, 0.15, 0.05]
    assert rows["a"].kernels == 6.0
    assert list(rows) == ["a", "b", "optimizer"]  # the costliest first


def test_what_is_in_no_layer_stands_apart() -> None:
    rows = rows_of(
        make_record(None, "forward", 1.0),
        make_record(None, "backward", 2.0),
        make_record(None, "input", 3.0),
        make_record(None, "precscope", 4.0),
        make_record(None, None, 5.0),
    )
    assert {name: row.total_ms for name, row in rows.items()} == {
        "unattributed": 2.5,
        "precscope": 2.0,
        "input": 1.5,
        "outside layers": 1.5,
    }
    assert (rows["outside layers"].forward_ms, rows["outside layers"].backward_ms) == (0.5, 1.0)


def test_casts_and_shared_kernels_are_parts_of_the_total() -> None:
    rows = rows_of(
        make_record("norm", "forward", 2.0, cast=True),
        make_record("norm", "backward", 6.0, shared_with=("conv", "relu")),
        make_record("conv", "forward", 4.0),
    )
    assert (rows["norm"].total_ms, rows["norm"].cast_ms, rows["norm"].shared_ms) == (4.0, 1.0, 3.0)
    assert rows["norm"].shared_with == ("conv", "relu")
    assert (rows["conv"].shared_with, rows["conv"].shared_ms) == (("norm",), 0.0)
    # A layer that only rides in another's kernel is not lost, and no time is made up for it.
    assert (rows["relu"].total_ms, rows["relu"].forward_ms, rows["relu"].shared_with) == (0.0, None, ("norm",))


@pytest.mark.parametrize(
    ("values", "expected"),
    [([True, False, None], True), ([False, False], False), ([False, None], None), ([None], None)],
)
def test_tensor_cores(values: list[bool | None], expected: bool | None) -> None:
    records = [make_record("a", "forward", 1.0, tensor_core=value) for value in values]
    assert rows_of(*records)["a"].tensor_cores is expected


def test_several_gpus_are_averaged() -> None:
    rows = rows_of(*(make_record("a", "forward", 8.0, device=f"gpu:{index}") for index in range(4)))
    assert (rows["a"].forward_ms, rows["a"].share, rows["a"].kernels) == (4.0, 1.0, 2.0)


def test_no_records_and_no_steps() -> None:
    assert layer_times([], steps=3) == ()
    with pytest.raises(ValueError, match="at least one step, got steps=0"):
        layer_times([], steps=0)
