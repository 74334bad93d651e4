"""Ops that leave float16's range or lose its digits, told by the dtype that they compute in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from precscope.advice.wording import plain
from precscope.formats import FORMATS
from precscope.lint_result import UNWRITTEN_MEMORY, LintFinding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from precscope.advice.finding import Severity
    from precscope.probes.forward_graph import ForwardGraph, LayerOp

__all__ = ["check_layer_ops", "check_operations", "upcasting_layers"]

_FLOAT16 = FORMATS["float16"]
_MANY = _FLOAT16.largest_exact_integer // 2  # elements: sums of ones of twice as many lose the last digit
_ROOT = math.sqrt(_FLOAT16.max)
_FREE = ("Cast", "Const", "ReadVariableOp", "Placeholder", "Identity", "NoOp")


@dataclass(frozen=True)
class _Risk:
    severity: Severity
    what: str
    advice: str


_SQUARE = _Risk(
    "warning",
    f"squares in float16: infinite from {plain(_ROOT)} on, zero below {plain(math.sqrt(_FLOAT16.flush_limit))}",
    "Cast to float32 before, as Keras' own normalization layers do.",
)
_CUDNN_IN_BFLOAT16 = _Risk(
    "error",
    "a recurrent layer of cuDNN in bfloat16, whose backward pass leaves its gradients unwritten: what lay in memory is "
    "taken for them",
    'Give the layer dtype="float32" or "mixed_float16", or use_cudnn=False.',
)
_RISKS = {
    "Exp": _Risk("warning", f"exp in float16: infinite above {math.log(_FLOAT16.max):.2f}",
                 "Subtract the maximum, clip, or compute it in float32."),
    "Expm1": _Risk("warning", f"expm1 in float16: infinite above {math.log(_FLOAT16.max):.2f}",
                   "Clip, or compute it in float32."),
    "Pow": _Risk("warning", "pow in float16: leaves its range soon", "Compute it in float32."),
    "Square": _SQUARE,
    "SquaredDifference": _SQUARE,
    "Log": _Risk("warning", f"log in float16: minus infinity where its input is below {plain(_FLOAT16.flush_limit)}",
                 "Add 1e-4 or more before, use log_softmax, or compute it in float32."),
    "Rsqrt": _Risk("warning", "rsqrt in float16: infinite where its input has become zero",
                   "Compute the norm in float32."),
    "Reciprocal": _Risk("warning", "a reciprocal in float16: infinite below 1.5e-05", "Compute it in float32."),
    "Cumsum": _Risk("warning", f"cumsum in float16: adding 1 stalls at {_FLOAT16.largest_exact_integer:,}",
                    "Compute it in float32."),
    "Softmax": _Risk("info", "softmax in float16: small probabilities become zero",
                     "Fine inside a model mostly; keep the last one in float32."),
    "LogSoftmax": _Risk("info", "log_softmax in float16: few digits", "Keep the last one in float32."),
}  # fmt: skip


def check_operations(graph: ForwardGraph) -> Iterator[LintFinding]:
    """Yield what the ops of the forward pass risk, each kind once for a layer and line."""
    yield from check_layer_ops(graph.ops)
    for dtype in dict.fromkeys(graph.output_dtypes):
        if dtype in ("float16", "bfloat16"):
            yield LintFinding(
                "output_in_16_bits",
                "warning",
                None,
                f"The model's output is {dtype}: the loss is computed from few digits, and small probabilities vanish.",
                'Give the last layer dtype="float32".',
            )


def check_layer_ops(ops: Iterable[LayerOp]) -> Iterator[LintFinding]:
    """Yield what these ops risk, each kind once for a layer and line."""
    seen: set[tuple[str, str, str | None]] = set()
    for item in ops:
        for check, risk in _risks(item.op):
            key = (item.layer, check, item.place)
            # Keras adds zeros of its own (the lower end of random numbers); of a user's line a zero tells something.
            if key not in seen and (check != "constant_vanishes" or item.place is not None):
                seen.add(key)
                yield _finding(item, check, risk)


def upcasting_layers(ops: Iterable[LayerOp]) -> set[str]:
    """Return the layers that compute in float32 inside, whatever their policy says."""
    return {item.layer for item in ops if item.op.type not in _FREE and _input_dtype(item.op) == "float32"}


def _finding(item: LayerOp, check: str, risk: _Risk) -> LintFinding:
    return LintFinding(
        check, risk.severity, item.layer, f"{risk.what[0].upper()}{risk.what[1:]}.", risk.advice, item.place
    )


def _risks(op: Any) -> Iterable[tuple[str, _Risk]]:
    if op.type in _RISKS and _input_dtype(op) == "float16":
        yield f"float16_{op.type.lower()}", _RISKS[op.type]
    if op.type in ("Sum", "Mean") and _input_dtype(op) == "float16":
        yield from _reduction(op)
    if op.type.startswith("CudnnRNN") and _input_dtype(op) == "bfloat16":
        yield UNWRITTEN_MEMORY, _CUDNN_IN_BFLOAT16
    if op.type == "Cast":
        yield from _integer_cast(op)
    if op.type in ("AddV2", "Sub", "Mul", "Maximum", "Minimum", "SelectV2"):
        yield from _constants(op)


def _input_dtype(op: Any) -> str | None:
    return op.inputs[0].dtype.name if len(op.inputs) else None


def _reduction(op: Any) -> Iterable[tuple[str, _Risk]]:
    count = _reduced(op)
    if count is not None and count < _MANY:
        return
    many = "many elements" if count is None else f"{count:,} elements"
    yield (
        f"float16_{op.type.lower()}",
        _Risk(
            "warning",
            f"{op.type.lower()} over {many} in float16: the sum leaves the range, or small terms are lost",
            "Use keras.ops.mean, which computes in float32, or cast before.",
        ),
    )


def _reduced(op: Any) -> int | None:
    """Return over how many elements a reduction goes; None where that is not known."""
    shape, axes = op.inputs[0].shape, tf.get_static_value(op.inputs[1])
    if shape.rank is None or axes is None:
        return None
    sizes = [shape[int(axis)] for axis in np.atleast_1d(axes)]
    return None if any(size is None for size in sizes) else math.prod(sizes)


def _integer_cast(op: Any) -> Iterable[tuple[str, _Risk]]:
    source, target = op.inputs[0].dtype, op.outputs[0].dtype.name
    if source.name in ("float16", "bfloat16") and op.outputs[0].dtype.is_integer and op.inputs[0].shape.rank:
        limit = FORMATS[source.name].largest_exact_integer
        yield (
            "integers_cast",
            _Risk(
                "warning",
                f"{source.name} numbers become integers: ids above {limit:,} have collided before",
                "Hand ids over as integers, which no policy casts, or give the layer autocast=False.",
            ),
        )
        return
    # Counts that the graph knows (a shape, say) and flags are small.
    if target not in ("float16", "bfloat16") or not source.is_integer or op.inputs[0].shape.rank in (None, 0):
        return
    limit = FORMATS[target].largest_exact_integer
    yield (
        "integers_cast",
        _Risk(
            "warning",
            f"integers become {target}, which holds them exactly up to {limit:,} only: ids and labels above collide",
            'Keep ids as integers; give a layer that needs them as numbers dtype="float32".',
        ),
    )


def _constants(op: Any) -> Iterable[tuple[str, _Risk]]:
    for tensor in op.inputs:
        source = tensor.op
        if source.type == "Cast":  # a float32 constant on its way
            source = source.inputs[0].op
        if tensor.dtype.name != "float16" or source.type != "Const":
            continue
        value = np.asarray(tf.get_static_value(source.outputs[0]))
        if value.dtype.kind != "f" and value.dtype.name != "bfloat16":
            continue
        magnitudes = np.abs(value.astype(np.float64))
        if np.any(magnitudes >= _FLOAT16.overflow_limit):
            yield (
                "constant_overflows",
                _Risk(
                    "warning",
                    "a constant that is infinite in float16 (a mask such as -1e9?): rows masked as a whole become NaN",
                    "Take -3e4, as Keras' Softmax layer does, or compute it in float32.",
                ),
            )
        elif op.type == "AddV2" and value.ndim == 0 and magnitudes < _FLOAT16.smallest_normal:
            yield (
                "constant_vanishes",
                _Risk(
                    "warning",
                    "adds a constant that is zero or subnormal in float16 (an epsilon?): it protects from nothing",
                    "Take 1e-3 or larger, or compute it in float32.",
                ),
            )
