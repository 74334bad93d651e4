"""What the name of a GPU kernel tells: the dtype it computes in, and whether it runs on tensor cores.

NVIDIA documents no grammar for these names. The patterns come from the kernels of the two H100 traces in the tests,
from the naming of CUTLASS, and from TensorFlow's own list (core/profiler/utils/kernel_stats_utils.cc). Examples:

    sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_...          cuDNN: float16 in, float32 sums, tensor cores
    sm80_xmma_gemm_f32f32_f32f32_f32_nn_n_..._ffma_...                    cuBLAS: xmma, but on CUDA cores (ffma)
    cutlass_80_tensorop_s1688gemm_64x64_16x6_nn_align4                    float32 as TF32, tensor cores
    ampere_fp16_s16816gemm_fp16_128x64_ldg8_..., turing_h1688gemm_...     float16, tensor cores
    nvjet_hsh_128x256_64x4_...                                            cuBLAS on Hopper: float16, tensor cores
    ampere_sgemm_128x64_tn, volta_scudnn_128x64_relu_interior_nn_v1       float32, CUDA cores
    Cast_GPU_DT_FLOAT_DT_HALF_kernel                                      TensorFlow: from float32 to float16
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["is_matrix_op", "kernel_dtypes", "kernel_uses_tensor_cores"]

_TENSORFLOW_DTYPES: Final = {
    "HALF": "float16",
    "BFLOAT16": "bfloat16",
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "BOOL": "bool",
    **{f"{sign}INT{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
}
_TENSORFLOW_KERNEL: Final = re.compile(r"_GPU_DT_([A-Z0-9]+)_DT_([A-Z0-9]+)_kernel$")

#: Which dtype a name means, by its first match: in all of these names the operands' types come first.
_DTYPE_MARKS: Final = (
    ("bfloat16", r"bf16|bfloat16|nvjet_(?:sm\d+_)?t"),
    ("float16", r"f16|fp16|half|h884|h1688|h16816|hgemm|nvjet_(?:sm\d+_)?h"),
    ("float64", r"f64f64|double|d884|dgemm"),
    ("float32", r"f32f32|tf32|float(?!16)|s1688gemm|sgemm|scudnn|nvjet_(?:sm\d+_)?s"),
)
_DTYPE: Final = re.compile("|".join(f"(?P<{dtype}>{marks})" for dtype, marks in _DTYPE_MARKS))

#: Shapes of tensor-core instructions after the type that they add up in: s16816 is 16x8x16 with float32 sums.
_INSTRUCTION: Final = re.compile(r"[shdic](884|1688|16816|16832|8816)")
#: Products on CUDA cores, and the work around a product: padding, reordering, adding up partial results.
_NO_TENSOR_CORES: Final = re.compile(
    r"ffma|simt|[shd]gemm|scudnn|gemv|winograd|fft|splitK?reduce|ReduceSplitK|AddPadding|ShuffleInTensor|"
    r"init_device_workspace|execute_split_k_kernel|nchwToNhwc|nhwcToNchw|^Mem(cpy|set)",
    re.IGNORECASE,
)
#: Libraries and wrappers of tensor-core instructions.
_TENSOR_CORES: Final = re.compile(r"xmma|[hw]g?mma|tensor_?op|nvjet", re.IGNORECASE)
_MATRIX_OP: Final = re.compile(r"Conv[123]D|DepthwiseConv|MatMul|Einsum|CudnnRNN|XlaDot|XlaConv|Attention")


def is_matrix_op(op_type: str) -> bool:
    """Return whether this TensorFlow op type is a product or convolution, which tensor cores could run."""
    return _MATRIX_OP.search(op_type) is not None


def kernel_dtypes(kernel: str) -> tuple[str | None, str | None]:
    """Return the dtypes of what a kernel reads and of what it writes, None where its name does not tell."""
    if match := _TENSORFLOW_KERNEL.search(kernel):
        first, last = match.groups()
        return _TENSORFLOW_DTYPES.get(first), _TENSORFLOW_DTYPES.get(last)
    found = _DTYPE.search(kernel)
    return (found.lastgroup if found else None), None


def kernel_uses_tensor_cores(kernel: str) -> bool | None:
    """Return whether a kernel of a product or convolution runs on tensor cores; None where its name does not tell."""
    if _INSTRUCTION.search(kernel):
        return True
    if _NO_TENSOR_CORES.search(kernel):
        return False
    return True if _TENSOR_CORES.search(kernel) else None
