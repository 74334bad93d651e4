"""The origin of infinity and NaN in one step, from statistics alone: steps with a known truth, without a framework."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from precscope.advice.origin_account import main_origin, origin_sentence, what_is_not_known
from precscope.origin import FRAMES_BEFORE, StepValues, all_frames, find_origin
from precscope.origin_records import DATA_ID, LOSS_ID, OriginRecord
from tests.core_fixtures import arrays_of
from tests.synthetic_runs import layer, values, with_bad

#: data -> first -> second (holds inner) -> head; `skip` reads first as well, and a sum takes both.
LAYERS = (
    layer(DATA_ID, type="InputLayer", compute="float32", parameters=0),
    layer("first", DATA_ID),
    layer("block/inner", "first"),
    layer("block", "first", "block/inner"),
    layer("skip", "first"),
    layer("sum", "block/inner", "skip", type="Add", parameters=0),
    layer("head", "sum", compute="float32"),
)


def step(loss: float = 1.0, spoiled: dict[str, int] | None = None, **bad: tuple[float, ...]) -> StepValues:
    """A step of the model above in which only the tensors in `bad` ("activation first") are not finite."""
    arrays = {f"activation {item.id}": values(64, seed=n) for n, item in enumerate(LAYERS)}
    arrays |= {f"gradient {item.id}": values(64, seed=n) for n, item in enumerate(LAYERS[1:], 20)}
    own = ("first", "block/inner", "skip", "head")
    arrays |= {f"weight {name}": values(32, dtype=np.float32, seed=n) for n, name in enumerate(own, 40)}
    arrays |= {f"weight_gradient {name}": values(32, dtype=np.float32, seed=n) for n, name in enumerate(own, 60)}
    for key, infinities in bad.items():
        arrays[key] = with_bad(arrays[key], *infinities)
    scalars, _ = arrays_of(*arrays.values())
    keys: list[Any] = [key.split(" ") for key in arrays]
    lost = [(spoiled or {}).get(key.removeprefix("weight "), 0) if key.startswith("weight ") else 0 for key in arrays]
    return StepValues(
        [replace(item, order=order) for order, item in enumerate(LAYERS)],
        [(name, kind, "0") for kind, name in keys],
        [array.dtype.name for array in arrays.values()],
        scalars,
        loss,
        np.array(lost, np.int64),
    )


INF, NAN = float("inf"), float("nan")


def test_a_finite_step_has_none():
    assert find_origin(step()) is None


def test_nan_that_the_model_expects_in_its_data_is_no_fault():
    assert find_origin(step(**{f"activation {DATA_ID}": (NAN,)})) is None


@pytest.mark.parametrize(
    ("bad", "cause", "direction", "at", "arrives_at"),
    [
        # Forward: the first to finish, the inner layer before the one that holds it; victims do not count.
        ({"activation first": (INF,), "activation head": (NAN,)}, "layer", "forward", "first", None),
        ({"activation block/inner": (INF,), "activation block": (INF,)}, "layer", "forward", "block/inner", None),
        ({"activation block": (INF,)}, "layer", "forward", "block", None),
        ({"activation sum": (NAN,), "gradient sum": (NAN,)}, "layer", "forward", "sum", None),
        # What was bad before any layer computed.
        ({f"activation {DATA_ID}": (NAN,), "activation first": (NAN,)}, "data", "forward", DATA_ID, None),
        ({"weight first": (NAN,), "activation first": (NAN,)}, "weights", None, None, None),
        # Backward: who was given a finite gradient and handed a bad one on.
        ({"gradient head": (INF,), "gradient sum": (NAN,)}, "loss", "backward", "head", "head"),
        ({"gradient sum": (INF,), "gradient first": (NAN,)}, "layer", "backward", "head", "sum"),
        ({"gradient block/inner": (INF,)}, "layer", "backward", "sum", "block/inner"),
        ({"weight_gradient block/inner": (INF,)}, "layer", "backward", "block/inner", None),
        ({"gradient first": (INF,), "weight_gradient skip": (INF,)}, "layer", "backward", "skip", "first"),
        ({"weight_gradient first": (INF,), "weight_gradient skip": (INF,)}, "layer", "backward", "skip", None),
    ],
)
def test_the_first_that_turned_finite_into_bad(bad, cause, direction, at, arrives_at):
    found = find_origin(step(**bad))
    assert found is not None
    assert (found.cause, found.direction, found.layer, found.arrives_at) == (cause, direction, at, arrives_at)
    assert found.data_finite is (f"activation {DATA_ID}" not in bad)


def test_the_loss_function_and_the_update():
    found = find_origin(step(loss=NAN, **{"gradient head": (NAN,)}))
    assert (found.cause, found.direction, found.layer) == ("loss", "forward", None)
    assert (found.frames[-1].layer, found.frames[-1].nans) == (LOSS_ID, 1)
    found = find_origin(step(spoiled={"skip": 3}))
    assert (found.cause, found.direction, found.layer, found.bad_updates) == ("update", "update", "skip", ("skip/0",))
    assert found.frames[-1].nonfinite == 3


def test_bad_weights_are_named():
    found = find_origin(step(**{"weight skip": (NAN,), "weight head": (INF,)}))
    assert found.bad_weights == ("skip/0", "head/0")


def test_frames_hold_the_ranges_and_end_at_the_origin():
    bad = step(**{"activation sum": (INF, NAN)})
    frames = find_origin(bad).frames
    assert [frame.layer for frame in frames] == [DATA_ID, "first", "block/inner", "block", "skip", "sum"]
    last = frames[-1]
    assert (last.infinities, last.nans, last.elements, last.dtype) == (1, 1, 64, "float16")
    inner, skip = bad.of("activation", "block/inner"), bad.of("activation", "skip")
    assert (last.input_min, last.input_max) == (min(inner.low, skip.low), max(inner.high, skip.high))
    assert last.output_max == bad.of("activation", "sum").high
    backward = find_origin(step(**{"gradient first": (INF,)})).frames
    assert [frame.direction for frame in backward] == ["backward"] * len(backward)
    assert backward[0].layer == "head"


def test_frames_are_bounded_and_all_frames_are_in_the_order_of_running():
    many = [layer(f"l{i}", *((f"l{i - 1}",) if i else ())) for i in range(30)]
    arrays = {f"l{i}": values(16, seed=i) for i in range(30)}
    arrays["l29"] = with_bad(arrays["l29"], INF)
    scalars, _ = arrays_of(*arrays.values())
    tensors = [(name, "activation", "0") for name in arrays]
    layers = [replace(item, order=order) for order, item in enumerate(many)]
    found = find_origin(StepValues(layers, tensors, ["float16"] * 30, scalars))
    assert [frame.layer for frame in found.frames] == [f"l{i}" for i in range(29 - FRAMES_BEFORE, 30)]
    order = [(frame.layer, frame.direction) for frame in all_frames(step())]
    assert order[:2] == [(DATA_ID, "forward"), ("first", "forward")]
    assert order[5:8] == [("head", "forward"), (LOSS_ID, "forward"), ("head", "backward")]
    assert order[-1] == ("first", "backward")


def origin(step: int, cause="layer", direction="forward", layer="exp", **more) -> OriginRecord:
    return OriginRecord(0, step, cause, direction, layer, last_step=step, **more)


def test_the_main_origin_is_the_first_that_no_loss_scale_explains():
    probe, fault = origin(3, direction="backward"), origin(40)
    lost = origin(2, cause="weights", direction=None, layer=None)
    assert main_origin([probe, fault, lost]) is fault
    assert main_origin([lost, probe]) is probe
    assert main_origin([lost]) is lost
    assert main_origin([]) is None


def test_sentences():
    text = origin_sentence(origin(41, epoch=1, batch=9, frames=find_origin(step(**{"activation sum": (INF,)})).frames))
    assert text.startswith("In train step 41 (epoch 2, batch 10) 'exp' turned finite values (")
    assert text.endswith("into 1 infinity (of 64) in float16.")
    again = origin_sentence(origin(4, times=3))
    assert again.endswith("; the same was seen 2 more times, last in step 4.")
    lost = origin(9, cause="weights", direction=None, layer=None, bad_weights=("a/kernel",), finite_step=5)
    assert "the weights were not finite already: 'a/kernel'" in origin_sentence(lost)
    assert "between step 5, the last that was seen to be finite, and this one" in what_is_not_known(lost)
    assert "tripwire=True" in what_is_not_known(lost)
    assert what_is_not_known(origin(9, noticed_by="tripwire", kept="kept/x.npz")) is None
    assert "the first sign came earlier" in what_is_not_known(origin(9, noticed_by="skipped step")).lower()
    code = origin_sentence(origin(1, layer="(before head)"))
    assert "the model's own code before 'head' turned" in code
