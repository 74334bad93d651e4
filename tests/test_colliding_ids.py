"""Ids that float16 makes equal on their way to a table are told, and others are not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import precscope
from precscope.reader import open_run

if TYPE_CHECKING:
    from pathlib import Path


class TokensAndPositions(keras.layers.Layer):
    """Embeds as a layer of one's own does: its inputs, where they are floats, are cast to its dtype."""

    def __init__(self, rows: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.tokens = keras.layers.Embedding(rows, 4, name="tokens", dtype=self.dtype_policy)
        self.positions = keras.layers.Embedding(5, 4, name="positions", dtype=self.dtype_policy)

    def call(self, ids: Any) -> Any:
        return self.tokens(ids) + self.positions(keras.ops.arange(5))


@pytest.mark.parametrize(
    ("rows", "dtype", "policy", "collide"),
    [
        (5000, "float32", "mixed_float16", True),
        (2048, "float32", "mixed_float16", False),
        (5000, "int32", "mixed_float16", False),
        (5000, "float32", "float32", False),
        (400, "float32", "mixed_bfloat16", True),
    ],
)
def test_ids_that_collide(rows: int, dtype: str, policy: str, collide: bool, tmp_path: Path) -> None:
    ids = keras.Input((5,), dtype=dtype)
    x = TokensAndPositions(rows, dtype=policy, name="embed")(ids)
    model = keras.Model(ids, keras.layers.Dense(1)(keras.layers.Flatten()(x)))
    model.compile("sgd", "mse", jit_compile=False)
    given = np.random.default_rng(0).integers(0, 250, (24, 5))
    with precscope.profile(model, tmp_path / "run", every=1, profile_steps=0, device_interval_s=0, reference=False):
        model.fit(given, given[:, :1], batch_size=8, verbose=0)
    run = open_run(tmp_path / "run")
    assert run.samples
    told = [notice for notice in run.notices if "looks up" in notice.message]
    assert len(told) == collide
    if collide:
        assert told[0].level == "warning"
        assert told[0].message.startswith(f"'embed/tokens' looks up {rows:,} rows by ids that were {policy[6:]} before")


def test_ids_that_are_rounded_out_of_their_table_are_told_where_the_first_step_fails(tmp_path: Path) -> None:
    ids = keras.Input((5,))
    x = TokensAndPositions(20_000, dtype="mixed_float16", name="embed")(ids)
    model = keras.Model(ids, keras.layers.Dense(1)(keras.layers.Flatten()(x)))
    model.compile("sgd", "mse", jit_compile=False)
    given = np.full((8, 5), 19_999)  # 20,000 in float16
    with (  # a GPU takes zeros for what lies outside
        pytest.raises(ValueError, match="mine") if on_gpu() else pytest.raises(Exception, match="20000 is not in"),
        precscope.profile(model, tmp_path / "run", profile_steps=0, device_interval_s=0),
    ):
        model.fit(given, given[:, :1], batch_size=8, verbose=0)
        raise ValueError("mine")
    run = open_run(tmp_path / "run")
    assert run.status == "failed"
    assert any("'embed/tokens' looks up 20,000 rows" in notice.message for notice in run.notices)


def on_gpu() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))
