"""Who has a kernel that XLA fused from ops of several layers; the programs are made by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from precscope.probes.hlo import HloModule, parse_hlo
from precscope.probes.op_time import op_records
from precscope.probes.xplane import Trace, TraceOp
from precscope.probes.xplane_schema import HloProto

if TYPE_CHECKING:
    from precscope.op_records import OpRecord

TYPES = {"bool": 1, "int32": 4, "float16": 10, "float32": 11}
NORM, RELU = "model_1/norm_1/", "model_1/relu_1/"


def make_module(*instructions: tuple[str, str, int, str, list[int]], op_name: str = "") -> HloModule:
    """Return a program with one fusion of (opcode, dtype, elements, op name, operands); the last is its root."""
    proto = HloProto()
    fused = proto.hlo_module.computations.add(id=1, root_id=100 + len(instructions) - 1)
    for index, (opcode, dtype, elements, name, operands) in enumerate(instructions):
        fused.instructions.add(
            id=100 + index,
            name=f"{opcode}.{index}",
            opcode=opcode,
            shape={"element_type": TYPES[dtype], "dimensions": [elements]} if dtype else {"element_type": 13},
            metadata={"op_name": name, "op_type": name.rpartition("/")[2]},
            operand_ids=[100 + operand for operand in operands],
        )
    entry = proto.hlo_module.computations.add(id=2, root_id=200)
    entry.instructions.add(
        id=200, name="fusion", opcode="fusion", called_computation_ids=[1], metadata={"op_name": op_name}
    )
    return parse_hlo(proto.SerializeToString())


def record_of(*instructions: Any, kernel: str = "loop_fusion", op_name: str = "") -> OpRecord:
    op = TraceOp("gpu:0", kernel, "StatefulPartitionedCall:StatefulPartitionedCall", "fusion", 1, False, 5000, 1)
    trace = Trace((op,), {1: make_module(*instructions, op_name=op_name)})
    (record,) = op_records(trace, {name: name for name in ("norm", "relu", "conv", "dense")})
    return record


def test_the_layer_that_computes_most_has_the_kernel() -> None:
    record = record_of(
        ("parameter", "float16", 1000, "", []),
        ("convert", "float32", 1000, f"{NORM}Cast", [0]),
        ("multiply", "float32", 1000, f"{NORM}mul", [1, 1]),
        ("convert", "float16", 1000, f"{NORM}Cast_1", [2]),
        ("maximum", "float16", 1000, f"{RELU}Relu", [3, 3]),
        op_name=f"{RELU}Relu",
    )
    assert (record.layer, record.direction, record.shared_with) == ("norm", "forward", ("relu",))
    assert (record.dtype, record.tensor_core, record.cast) == ("float32", False, False)
    assert record.device_time_ns == 5


def test_a_reduction_counts_what_it_reads() -> None:
    record = record_of(
        ("parameter", "float32", 1000, "", []),
        ("reduce", "float32", 10, f"{NORM}Mean", [0]),
        ("multiply", "float32", 10, f"{RELU}mul", [1, 1]),
        ("add", "float32", 10, f"{RELU}add", [2, 2]),
    )
    assert (record.layer, record.op) == ("norm", f"{NORM}Mean")


def test_a_product_outweighs_what_is_fused_to_it() -> None:
    record = record_of(
        ("parameter", "float16", 100, "", []),
        ("dot", "float32", 100, "model_1/dense_1/MatMul", [0, 0]),
        *[("add", "float32", 100_000, f"{NORM}add", [1, 1])] * 5,
        kernel="gemm_fusion_dot_1",
    )
    assert (record.layer, record.dtype, record.tensor_core) == ("dense", "float16", None)


def test_forward_work_in_a_backward_kernel_is_recomputed_for_it() -> None:
    record = record_of(
        ("parameter", "float32", 1000, "", []),
        ("subtract", "float32", 1000, f"{NORM}sub", [0, 0]),
        ("multiply", "float32", 1000, f"{NORM}mul", [1, 1]),
        ("select", "float32", 1000, f"gradient_tape/{RELU}ReluGrad", [2, 2, 2]),
        ("multiply", "float32", 1000, f"gradient_tape/{NORM}Mul", [3, 1]),
    )
    assert (record.layer, record.direction, record.shared_with) == ("norm", "backward", ("relu",))


def test_moving_elements_counts_only_where_they_are_written() -> None:
    read = record_of(
        ("parameter", "float16", 1000, "", []),
        ("slice", "float16", 1000, "gradient_tape/model_1/conv_1/Conv2DBackpropFilter", [0]),
        ("is-finite", "bool", 1000, "IsFinite", [1]),
    )
    assert (read.layer, read.direction, read.dtype) == (None, "optimizer", "float16")
    written = record_of(
        ("parameter", "float32", 10, "", []),
        ("convert", "float16", 10, f"{RELU}Cast", [0]),
        ("broadcast", "float16", 1000, f"gradient_tape/{NORM}Tile", [1]),
        ("bitcast", "float16", 1000, f"gradient_tape/{NORM}Tile", [2]),
    )
    assert written.layer == "norm"


def test_work_without_a_name_does_not_outvote_work_with_one() -> None:
    record = record_of(
        ("parameter", "float32", 1000, "", []),
        ("transpose", "float32", 1000, "", [0]),
        ("multiply", "float32", 1000, "", [1, 1]),
        ("add", "float32", 10, f"{NORM}add", [2, 2]),
    )
    assert (record.layer, record.shared_with) == ("norm", ())


def test_what_nothing_names_stays_unattributed() -> None:
    record = record_of(("parameter", "float32", 1000, "", []), ("copy", "float32", 1000, "", [0]))
    assert (record.op, record.layer, record.direction) == ("fusion", None, None)


@pytest.mark.parametrize(
    ("before", "after", "is_cast"),
    [
        ("float32", "float16", True),
        ("float16", "float32", True),
        ("int32", "float32", False),
        ("bool", "float16", False),
    ],
)
def test_casts_between_float_formats(before: str, after: str, is_cast: bool) -> None:
    record = record_of(
        ("parameter", before, 1000, "", []),
        ("convert", after, 1000, "model_1/conv_1/Cast", [0]),
        ("transpose", after, 1000, "model_1/conv_1/Cast", [1]),
    )
    assert (record.cast, record.layer, record.dtype) == (is_cast, "conv", after)


def test_a_fusion_of_nothing_is_its_own_work() -> None:
    record = record_of(("constant", "float32", 1000, "", []), op_name=f"{NORM}zeros")
    assert (record.layer, record.op) == ("norm", f"{NORM}zeros")
