"""What every op shares: the types in which it multiplies and accumulates, and how many rows a GEMM must have.

A GEMM library may choose another code path for few rows, and then a row's result depends on who else is in
the batch. `gemm_row_tile` finds the smallest row multiple from which on it does not, by trying.
"""

import functools

import torch

from kernels.cpu.library import widens_bfloat16

__all__ = [
    "accumulate_dtype",
    "as_factor",
    "factor_dtype",
    "gemm_row_tile",
    "native_dtype",
    "pad_rows",
]

_TILES = (1, 2, 4, 8, 16, 32, 64)
_PROBE_ROWS = 130  # past two tiles of 64, and no multiple of anything


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for bf16, fp16 and fp32; float64 for float64, so that float64 tests mean something."""
    return torch.promote_types(dtype, torch.float32)


def factor_dtype(x: torch.Tensor) -> torch.dtype:
    """In which a backward multiplies x: float32 for bfloat16 where a CPU is faster at that (ADR 20), else its own."""
    is_widened = x.dtype == torch.bfloat16 and x.device.type == "cpu" and widens_bfloat16()
    return torch.float32 if is_widened else x.dtype


def as_factor(x: torch.Tensor) -> torch.Tensor:
    return x.to(factor_dtype(x))


def native_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, else float32.

    Measured on an AVX2 CPU without bf16 instructions: a bf16 GEMM reaches 0.016 TFLOP/s, fp32 0.1.
    """
    if torch.device(device).type != "cpu":
        return torch.bfloat16
    features = torch.cpu.get_capabilities()
    has_bf16 = features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16")
    return torch.bfloat16 if has_bf16 else torch.float32


@functools.cache
def gemm_row_tile(
    in_features: int, out_features: int, dtype: torch.dtype, device: torch.device
) -> int:
    """Smallest multiple to pad rows to, so that each row of `x @ w.T` is the same bits in any batch.

    Tries 1, 2, 4, ... 64 rows and multiples of them against one large batch. Returns 0 when no multiple
    will do: rows must then be multiplied in tiles of exactly 64. Shapes: x [rows, in], w [out, in].
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
    """[rows, ...] -> [rows rounded up to a multiple of `tile`, ...], filled with zeros."""
    missing = -x.shape[0] % tile
    if missing == 0:
        return x
    return torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
