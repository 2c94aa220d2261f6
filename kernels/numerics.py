"""Numerics that every op shares: types to multiply and accumulate in, and how many rows a GEMM must have.

A GEMM library may choose another code path for few rows, and then a row's result depends on who else is in
the batch. `gemm_row_tile` finds, by trying, the smallest row multiple with which it does not.
"""

import functools

import torch

from kernels.cpu.library import widens_bfloat16
from kernels.cpu.native_functions import is_native

__all__ = [
    "VOCAB_BLOCK",
    "accumulate_dtype",
    "as_factor",
    "factor_dtype",
    "gemm_row_tile",
    "is_thread_invariant",
    "native_dtype",
    "pad_rows",
]

VOCAB_BLOCK = 1024
"""Tokens of the vocabulary that are summed together; native/vocabulary.c has the same number."""

_TILES = (1, 2, 4, 8, 16, 32, 64)
_PROBE_ROWS = 130  # past two tiles of 64, and no multiple of anything


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns float32 for bf16, fp16 and fp32; float64 for float64, so that tests in float64 are meaningful."""
    return torch.promote_types(dtype, torch.float32)


def factor_dtype(x: torch.Tensor) -> torch.dtype:
    """Returns the type in which a backward multiplies x: float32 for bfloat16 on CPUs that are faster so (ADR 18)."""
    is_widened = x.dtype == torch.bfloat16 and x.device.type == "cpu" and widens_bfloat16()
    return torch.float32 if is_widened else x.dtype


def as_factor(x: torch.Tensor) -> torch.Tensor:
    return x.to(factor_dtype(x))


def native_dtype(device: torch.device | str) -> torch.dtype:
    """Returns bfloat16 where the device multiplies it in hardware, else float32.

    Measured on an AVX2 CPU without bf16 instructions: a bf16 GEMM reaches 0.016 TFLOP/s, fp32 0.1.
    """
    if torch.device(device).type != "cpu":
        return torch.bfloat16
    features = torch.cpu.get_capabilities()
    has_bf16 = features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16")
    return torch.bfloat16 if has_bf16 else torch.float32


def is_thread_invariant(dtype: torch.dtype, device: torch.device) -> bool:
    """Returns whether the number of CPU threads changes no bit of any op on tensors of this type and device."""
    return is_native(dtype, device)


@functools.cache
def gemm_row_tile(
    in_features: int, out_features: int, dtype: torch.dtype, device: torch.device
) -> int:
    """Returns the smallest multiple to pad rows to, so that each row of `x @ w.T` is the same bits in any batch.

    Compares 1, 2, 4, ... 64 rows, and multiples of them, with one large batch. Returns 0 if no multiple
    works: rows must then be multiplied in tiles of exactly 64. Shapes: x [rows, in], w [out, in].
    """
    generator = torch.Generator(device="cpu").manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)

    # rank one, because filling 49152 x 576 with noise takes longer than the probe itself
    weight = noise(out_features, 1) * noise(1, in_features)
    x = noise(_PROBE_ROWS, in_features)
    truth = torch.nn.functional.linear(x[:128], weight)
    for tile in _TILES:
        counts = {tile, 2 * tile, 3 * tile, 7 * tile, 64 - 64 % tile}
        if all(
            torch.equal(
                torch.nn.functional.linear(x[start : start + n], weight), truth[start : start + n]
            )
            for n in counts
            for start in (0, 3)
            if start + n <= 128
        ):
            return tile
    return 0


def pad_rows(x: torch.Tensor, tile: int) -> torch.Tensor:
    """Rounds the number of rows of [rows, ...] up to a multiple of `tile`, with rows of zeros."""
    missing = -x.shape[0] % tile
    if missing == 0:
        return x
    return torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
