"""Op time of two real H100 traces against a table made by hand, and of CPU traces made here.

The model of the two traces: Conv2D `conv_a` 64, BatchNormalization `bn_a`, ReLU `relu_a`, Conv2D `conv_b` 64,
GlobalAveragePooling2D `gap`, Dense `fc` 100 in float32; mixed_float16, 256 images of 32x32x3, SGD, three steps.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from precscope.layer_time import layer_times
from precscope.probes.op_time import op_records, read_trace

if TYPE_CHECKING:
    from precscope.op_records import Direction, OpRecord

TRACES = Path(__file__).parent / "data" / "traces"
LAYERS = {name: name for name in ("conv_a", "bn_a", "relu_a", "conv_b", "gap", "fc")}


class Row(NamedTuple):
    """What is right for the kernels that match: found by hand, from the kernel, the HLO dump and the model."""

    kernel: str
    op: str
    layer: str | None
    direction: Direction | None
    shared_with: tuple[str, ...] = ()


# Which convolution a cuDNN kernel belongs to: conv_a has 3 input channels, so cuDNN cannot load 8 float16 at once
# ("indexed_wo_smem", "aligna2") and pads the channels of its weight gradient ("AddPadding"); its input is data, so the
# only gradient with respect to an input ("dgrad") is conv_b's.
XLA_TABLE = (
    Row("MemcpyH2D", "IteratorGetNext/_1", None, "input"),  # 3 MiB of images
    Row("sm90_xmma_dgrad", "Conv2DBackpropInput", "conv_b", "backward"),
    Row("sm90_xmma_fprop", "convolution", "conv_b", "forward"),
    Row("sm90_xmma_wgrad.*segment_k_on", "Conv2DBackpropFilter", "conv_b", "backward"),
    Row("sm90_xmma_wgrad.*execute_split_k", "Conv2DBackpropFilter", "conv_b", "backward"),
    Row("init_device_workspace", "Conv2DBackpropFilter", "conv_b", "backward"),
    Row("sm80_xmma_fprop.*indexed_wo_smem", "convolution", "conv_a", "forward"),
    Row("Conv2dWgrad", "Conv2DBackpropFilter", "conv_a", "backward"),
    Row("nhwcAddPaddingKernel", "Conv2DBackpropFilter", "conv_a", "backward"),
    Row("ReduceSplitK", "Conv2DBackpropFilter", "conv_a", "backward"),
    # Reads conv_a's output and relu_a's gradient (14.7 M elements each), computes bn_a's input gradient in eight
    # instructions and writes it; on the way it adds it up for conv_a's bias. XLA names it after that sum.
    Row("^input_convert_reduce_fusion$", "", "bn_a", "backward", ("conv_a",)),
    # Normalizes again to know where ReLU was active (recomputed forward work of bn_a), selects (relu_a), multiplies and
    # adds up for gamma and beta (bn_a).
    Row("^input_reduce_select_fusion$", "", "bn_a", "backward", ("relu_a",)),
    # (x - mean) / sigma * gamma + beta in float32, cast to float16, then one maximum. XLA names it after the maximum.
    Row("^loop_maximum_fusion$", "", "bn_a", "forward", ("relu_a",)),
    # Writes the mean's gradient 28x28 times (12.8 M elements), and adds it up for conv_b's bias.
    Row("^input_broadcast_reduce_fusion$", "", "gap", "backward", ("conv_b",)),
    Row("^input_reduce_fusion_6$", "", "gap", "forward"),
    Row("^input_reduce_fusion_3$", "moments/mean", "bn_a", "forward"),
    Row("^input_reduce_fusion_2$", "moments/variance", "bn_a", "forward"),
    Row("^input_reduce_fusion_10$", "^sequential_1/bn_a_1/moments", "bn_a", "forward"),  # second stage of both
    Row("^input_reduce_fusion_10$", "^gradient_tape/sequential_1/bn_a_1", "bn_a", "backward"),  # of the gradients' sums
    Row("^loop_(add_multiply|multiply_subtract)_fusion$", "", "bn_a", "forward"),  # on 64 elements
    Row(
        "^input_add_multiply_reduce_fusion$", "", "bn_a", "backward"
    ),  # gamma's gradient, moving averages, finite checks
    Row("^gemm_fusion_MatMul_4$", "", "fc", "forward"),
    Row("^gemm_fusion_MatMul_(6|1_2)$", "", "fc", "backward"),
    Row("^input_reduce_fusion_15$", "fc_1/BiasAdd", "fc", "backward"),
    Row("^input_reduce_fusion_16$", "conv_b_1/BiasAdd", "conv_b", "backward"),
    Row("^input_reduce_fusion_16$", "conv_a_1/BiasAdd", "conv_a", "backward"),
    Row("^wrapped_convert$", "^sequential_1/Cast", None, "forward"),  # the model casts its input
    Row("^loop_pad_fusion$", "^sequential_1/Cast", None, "forward"),  # the same, padded to four channels
    Row("^fusion_41$", "^compile_loss", None, "forward", ("fc",)),  # cross entropy, with the addition of fc's bias
    Row("^fusion_43$", "^gradient_tape/compile_loss", None, "backward", ("fc",)),
    Row("^input_reduce_fusion(_13?)$", "^compile_loss", None, "forward"),
    Row("^input_transpose_fusion(_2)?$", "convolution/Cast", "conv_[ab]", "forward"),  # casts of the kernels
    Row("^wrapped_convert_1$", "Reshape/Cast", "conv_[ab]", "forward"),  # casts of the biases
    Row("^loop_(convert|multiply)_fusion$", "gap_1", "gap", "forward|backward"),  # type: ignore[arg-type]
    # Finite checks of all gradients, and SGD under the condition that they pass.
    Row("^input_reduce_fusion$", "All_4", None, "optimizer", ("conv_b",)),  # casts conv_b's gradient, then checks it
    Row("^input_reduce_fusion_5$", "All", None, "optimizer", ("conv_a",)),
    Row("^input_reduce_fusion_(4|7|9|18)$", "All", None, "optimizer"),
    Row("^input_transpose_fusion_1$", "^cond", None, "optimizer", ("conv_b",)),
    Row("^input_transpose_fusion_3$", "^cond", None, "optimizer", ("conv_a",)),
    Row("^loop_select_fusion_3$", "^cond", None, "optimizer", ("bn_a",)),
    Row("^loop_select_fusion(_[124])?$", "^cond", None, "optimizer"),
    Row("^loop_select_fusion_[567]$", "", None, "optimizer"),  # counters and the loss scale itself
)

_BN, _BN_GRADIENT = "^sequential_1/bn_a_1/", "^gradient_tape/sequential_1/bn_a_1/"
NO_XLA_TABLE = (
    Row("MemcpyH2D", "IteratorGetNext/_1", None, "input"),
    Row("BiasGradNHWC", "^gradient_tape/sequential_1/conv_b_1/BiasAdd", "conv_b", "backward"),
    Row("BiasGradNHWC", "^gradient_tape/sequential_1/conv_a_1/BiasAdd", "conv_a", "backward"),
    Row("BiasNHWC", "^sequential_1/conv_b_1/BiasAdd", "conv_b", "forward"),
    Row("BiasNHWC", "^sequential_1/conv_a_1/BiasAdd", "conv_a", "forward"),
    Row("ColumnReduce|CleanupSegments", _BN + "moments/(mean|variance)", "bn_a", "forward"),
    Row("main_kernel", _BN + "moments/SquaredDifference", "bn_a", "forward"),
    Row("_GPU_DT_FLOAT_DT_FLOAT_|main_kernel", _BN + "batchnorm/", "bn_a", "forward"),
    Row("Cast_GPU_DT_HALF_DT_FLOAT", _BN + "Cast$", "bn_a", "forward"),  # its input, to float32
    Row("Cast_GPU_DT_FLOAT_DT_HALF", _BN + "Cast_5$", "bn_a", "forward"),  # its output, back to float16
    Row("ColumnReduce|CleanupSegments", _BN_GRADIENT + "batchnorm/(mul_1|add_1)/Sum", "bn_a", "backward"),
    Row("Mul_GPU|Sub_GPU", _BN_GRADIENT + "(batchnorm|moments)/", "bn_a", "backward"),
    Row("Cast_GPU", _BN_GRADIENT + "Cast(_5)?/Cast", "bn_a", "backward"),
    Row("EigenMetaKernel", _BN_GRADIENT + "moments/Tile", "bn_a", "backward"),
    # Adds the gradients that reach bn_a's input through the mean, the variance and the output. TensorFlow calls it just
    # "AddN_1", so the layer stays unknown; what remains right is the direction.
    Row("EigenMetaKernel", "^AddN_1$", "bn_a", "backward"),
    Row("ColumnReduce", "^sequential_1/gap_1/Mean", "gap", "forward"),
    Row("Cast_GPU_DT_HALF_DT_FLOAT", "^sequential_1/gap_1/Cast$", "gap", "forward"),
    Row(
        "Mul_GPU|EigenMetaKernel|Cast_GPU",
        "^gradient_tape/sequential_1/gap_1/(truediv|Tile|Cast/Cast)$",
        "gap",
        "backward",
    ),
    # ShuffleInTensor3 brings a kernel into cuDNN's order and back.
    Row("sm90_xmma_dgrad|ShuffleInTensor3", "conv_b_1.*BackpropInput", "conv_b", "backward"),
    Row("sm90_xmma_fprop|ShuffleInTensor3", "^sequential_1/conv_b_1/convolution$", "conv_b", "forward"),
    Row("sm90_xmma_wgrad|init_device|ShuffleInTensor3", "conv_b_1.*BackpropFilter", "conv_b", "backward"),
    Row("sm80_xmma.*indexed_wo_smem|ShuffleInTensor3", "^sequential_1/conv_a_1/convolution$", "conv_a", "forward"),
    Row("Conv2dWgrad|ReduceSplitK|AddPadding|ShuffleInTensor3", "conv_a_1.*BackpropFilter", "conv_a", "backward"),
    Row("Cast_GPU_DT_FLOAT_DT_HALF", "^sequential_1/conv_a_1/.*Cast$", "conv_a", "forward"),  # weights, to float16
    Row("Cast_GPU_DT_FLOAT_DT_HALF", "^sequential_1/conv_b_1/.*Cast$", "conv_b", "forward"),
    Row("Cast_GPU_DT_HALF_DT_FLOAT", "^gradient_tape/sequential_1/conv_a_1/.*Cast$", "conv_a", "backward"),
    Row("Cast_GPU_DT_HALF_DT_FLOAT", "^gradient_tape/sequential_1/conv_b_1/.*Cast$", "conv_b", "backward"),
    Row("ReluGrad", "^gradient_tape/sequential_1/relu_a_1", "relu_a", "backward"),
    Row("main_kernel", "^sequential_1/relu_a_1/Relu", "relu_a", "forward"),
    Row("EigenMetaKernel|RowReduce", "^compile_loss/.*SparseSoftmax", None, "forward"),
    Row("s1688gemm", "^sequential_1/fc_1", "fc", "forward"),
    Row("s1688gemm|splitKreduce", "^gradient_tape/sequential_1/fc_1", "fc", "backward"),
    Row("Cast_GPU", "^sequential_1/Cast$", None, "forward"),  # the model casts its input
    Row("IsFinite|Reduce|Cleanup", "^(IsFinite|All)(_[0-9])?$", None, "optimizer"),
    Row("", "^cond/then/_20/cond/(sgd/|truediv)", None, "optimizer"),
)


def is_right(record: OpRecord, row: Row) -> bool:
    return bool(
        re.fullmatch(row.layer or "None", str(record.layer)) and re.fullmatch(str(row.direction), str(record.direction))
    )


def row_of(record: OpRecord, table: tuple[Row, ...]) -> Row | None:
    rows = [row for row in table if re.search(row.kernel, record.kernel or "") and re.search(row.op, record.op)]
    assert len(rows) < 2, f"{record.kernel} {record.op} is in the table twice: {rows}"
    return rows[0] if rows else None


def records_of(name: str) -> tuple[OpRecord, ...]:
    return op_records(read_trace(TRACES / name), LAYERS)


CASES = pytest.mark.parametrize(
    ("name", "table", "wrong"),
    [("h100_xla.xplane.pb", XLA_TABLE, set()), ("h100_no_xla.xplane.pb", NO_XLA_TABLE, {"AddN_1"})],
    ids=["xla", "no_xla"],
)


@CASES
def test_attribution_agrees_with_the_table(name: str, table: tuple[Row, ...], wrong: set[str]) -> None:
    records = [(record, row) for record in records_of(name) if (row := row_of(record, table)) is not None]
    assert {row for _, row in records} == set(table), "a row of the table matches no kernel"
    assert {record.op for record, row in records if not is_right(record, row)} == wrong
    assert all(record.shared_with == row.shared_with for record, row in records)


@CASES
def test_the_right_share_of_gpu_time(name: str, table: tuple[Row, ...], wrong: set[str]) -> None:
    for kernels_only in (False, True):
        total = right = 0
        for record in records_of(name):
            if kernels_only and re.match("Memcpy|Memset", record.kernel or ""):
                continue
            row = row_of(record, table)
            total += record.device_time_ns
            right += record.device_time_ns if row and is_right(record, row) else 0
        # XLA: 0.979 of all and 0.997 of kernels; without it 0.945 and 0.950. The target is 0.9.
        assert right / total >= 0.94


@pytest.mark.parametrize(
    ("name", "layer", "tensor_cores"),
    [
        ("h100_xla.xplane.pb", "conv_a", True),
        ("h100_xla.xplane.pb", "bn_a", False),
        ("h100_xla.xplane.pb", "fc", None),  # a Triton kernel: its name does not tell
        ("h100_no_xla.xplane.pb", "fc", True),  # float32 as TF32 (s1688gemm)
        ("h100_no_xla.xplane.pb", "gap", False),
    ],
)
def test_tensor_cores(name: str, layer: str, tensor_cores: bool | None) -> None:
    (row,) = (row for row in layer_times(records_of(name), steps=3) if row.layer == layer)
    assert row.tensor_cores is tensor_cores


def test_layers_of_the_trace_without_xla() -> None:
    rows = {row.layer: row for row in layer_times(records_of("h100_no_xla.xplane.pb"), steps=3)}
    norm = rows["bn_a"]
    ops = [op for op in read_trace(TRACES / "h100_no_xla.xplane.pb").ops if "/bn_a_1/" in op.tf_op]
    forward_ps = sum(op.time_ps for op in ops if "gradient_tape" not in op.tf_op)
    backward_ps = sum(op.time_ps for op in ops if "gradient_tape" in op.tf_op)
    cast_ps = sum(op.time_ps for op in ops if op.kernel.startswith("Cast_GPU"))  # two each way, of 14.7 M elements
    assert norm.forward_ms == pytest.approx(forward_ps / 3e9, rel=1e-5)
    assert norm.backward_ms == pytest.approx(backward_ps / 3e9, rel=1e-5)
    assert norm.cast_ms == pytest.approx(cast_ps / 3e9, rel=1e-5)
    assert (norm.shared_ms, norm.kernels) == (0, 41)


def test_no_time_is_lost_or_made_up() -> None:
    for name in ("h100_xla.xplane.pb", "h100_no_xla.xplane.pb"):
        trace, records = read_trace(TRACES / name), records_of(name)
        rows = layer_times(records, steps=3)
        total_ns = sum(op.time_ps for op in trace.ops) / 1000
        assert sum(record.device_time_ns for record in records) == pytest.approx(total_ns, rel=1e-6)
        assert sum(row.total_ms for row in rows) * 3e6 == pytest.approx(total_ns, rel=1e-6)
        assert sum(row.share for row in rows) == pytest.approx(1)


def test_a_layer_that_xla_fused_away_is_still_listed() -> None:
    (relu,) = (row for row in layer_times(records_of("h100_xla.xplane.pb"), steps=3) if row.layer == "relu_a")
    assert (relu.total_ms, relu.forward_ms, relu.shared_with) == (0.0, None, ("bn_a",))


def test_without_its_program_a_kernel_is_not_attributed() -> None:
    trace = replace(read_trace(TRACES / "h100_xla.xplane.pb"), modules={})
    (record,) = (item for item in op_records(trace, LAYERS) if "xmma_dgrad" in str(item.kernel))
    assert (record.op, record.op_type, record.layer, record.direction) == ("cudnn-conv-bw-input.1", None, None, None)
    assert (record.tensor_core, record.dtype) == (True, "float16")  # the kernel's own name still tells


def test_without_layers_nothing_is_guessed() -> None:
    records = op_records(read_trace(TRACES / "h100_no_xla.xplane.pb"), {})
    assert {record.layer for record in records} == {None}
    assert {record.direction for record in records} == {"backward", "optimizer", "input", "forward", None}


def test_op_time_needs_no_tensorflow() -> None:
    code = "import sys, precscope.probes.op_time; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
