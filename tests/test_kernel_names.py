"""Dtype and tensor cores by kernel name; the names are real ones, cut where they say nothing more."""

from __future__ import annotations

import pytest

from precscope.probes.kernel_names import is_matrix_op, kernel_dtypes, kernel_uses_tensor_cores


@pytest.mark.parametrize(
    ("kernel", "dtype", "tensor_cores"),
    [
        # cuDNN and cuBLAS on Hopper and Ampere
        (
            "sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize64x64x64_warpgroupsize1x1x1",
            "float16",
            True,
        ),
        (
            "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_cga1x1x1_execute_kernel__5x_cublas",
            "bfloat16",
            True,
        ),
        ("sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize64x64x32_stage4_warpsize2x2x1_tensor16x8x8", "float32", True),
        ("sm80_xmma_gemm_f32f32_f32f32_f32_nn_n_tilesize32x32x8_stage3_warpsize1x2x1_ffma_aligna4", "float32", False),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NNT", "float16", True),
        ("nvjet_sm90_tst_128x256_64x4_1x2_h_bz_coopA_NNT", "bfloat16", True),
        ("void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm_64x64_16x6_nn_align4>", "float32", True),
        (
            "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_tn_align8>",
            "bfloat16",
            True,
        ),
        ("void cutlass::Kernel2<cutlass_80_simt_sgemm_128x32_8x5_nn_align1>", "float32", False),
        (
            "_ZN17cutlass__5x_cudnn6KernelI52Conv2dWgradOutputGradientTileAccessINS_6half_tENS4_11MmaTensorOpI",
            "float16",
            True,
        ),
        # older names
        ("volta_fp16_s884gemm_fp16_128x128_ldg8_f2f_nn", "float16", True),
        ("turing_h1688gemm_128x128_ldg8_stages_32x1_tn", "float16", True),
        ("ampere_fp16_s16816gemm_fp16_128x64_ldg8_f2f_stages_64x4_nn", "float16", True),
        ("ampere_sgemm_128x64_tn", "float32", False),
        ("volta_scudnn_128x64_relu_interior_nn_v1", "float32", False),
        # around a product
        ("void nhwcAddPaddingKernel<__half, __half, float, true, (cudnnKernelDataType_t)0>(int)", "float16", False),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, float, float>", "float32", False),
        (
            "sm90_xmma_wgrad_indexed_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_execute_split_k_kernel",
            "float16",
            False,
        ),
        ("MemcpyD2D", None, False),
        # names that do not tell
        ("gemm_fusion_MatMul_1_2", None, None),
        ("main_kernel", None, None),
    ],
)
def test_products(kernel: str, dtype: str | None, tensor_cores: bool | None) -> None:
    assert kernel_dtypes(kernel)[0] == dtype
    assert kernel_uses_tensor_cores(kernel) is tensor_cores


@pytest.mark.parametrize(
    ("kernel", "dtypes"),
    [
        ("Cast_GPU_DT_FLOAT_DT_HALF_kernel", ("float32", "float16")),
        ("Cast_GPU_DT_BFLOAT16_DT_FLOAT_kernel", ("bfloat16", "float32")),
        ("IsFinite_GPU_DT_FLOAT_DT_BOOL_kernel", ("float32", "bool")),
        ("AddV2_GPU_DT_INT64_DT_INT64_kernel", ("int64", "int64")),
        ("void tensorflow::BiasGradNHWC_SharedAtomics<Eigen::half>(int, Eigen::half const*)", ("float16", None)),
        ("void Eigen::internal::EigenMetaKernel<Eigen::TensorMap<Eigen::Tensor<float, 1, 1, long>", ("float32", None)),
        (
            "void Eigen::internal::EigenMetaKernel<Eigen::TensorMap<Eigen::Tensor<Eigen::bfloat16, 1>",
            ("bfloat16", None),
        ),
        ("void tensorflow::functor::BlockReduceKernel<bool*, bool*, 256, tensorflow::functor::And>", (None, None)),
    ],
)
def test_dtypes(kernel: str, dtypes: tuple[str | None, str | None]) -> None:
    assert kernel_dtypes(kernel) == dtypes


def test_matrix_ops() -> None:
    names = ("Conv2D", "_FusedConv2D", "Conv2DBackpropFilter", "MatMul", "BatchMatMulV2", "Einsum", "CudnnRNNV3")
    assert all(is_matrix_op(name) for name in names)
    assert not any(is_matrix_op(name) for name in ("Mul", "Cast", "BiasAddGrad", "Mean", "FusedBatchNormV3"))
