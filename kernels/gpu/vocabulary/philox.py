"""Triton kernel of `kernels.philox`: all uniforms of a step in one launch. Shape legend: B = rows."""

import torch
import triton
import triton.language as tl

__all__ = ["philox_uniform_triton"]

_BLOCK = 128


@triton.jit
def _philox_kernel(
    sample_keys_ptr,  # [B, 3] int64 dense: seed, group_id, sample_index
    positions_ptr,  # [B] int64
    uniforms_ptr,  # [B] fp32, written
    num_rows,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = rows < num_rows
    key_ptr = sample_keys_ptr + rows * 3
    seed = tl.load(key_ptr, mask=mask, other=0).to(tl.uint64)
    group = tl.load(key_ptr + 1, mask=mask, other=0).to(tl.uint64)
    c1 = tl.load(key_ptr + 2, mask=mask, other=0).to(tl.uint32)
    c0 = tl.load(positions_ptr + rows, mask=mask, other=0).to(tl.uint32)
    c2, c3 = group.to(tl.uint32), (group >> 32).to(tl.uint32)
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        product0 = c0.to(tl.uint64) * 0xD2511F53
        product1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = product1.to(tl.uint32), product0.to(tl.uint32)
        k0 = (k0.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        k1 = (k1.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    tl.store(uniforms_ptr + rows, (c0 >> 8).to(tl.float32) * 5.9604644775390625e-08, mask=mask)


def philox_uniform_triton(sample_keys_B3: torch.Tensor, positions_B: torch.Tensor) -> torch.Tensor:
    """[B] fp32 uniforms in [0, 1), multiples of 2**-24."""
    num_rows = len(positions_B)
    uniforms_B = torch.empty(num_rows, dtype=torch.float32, device=positions_B.device)
    if num_rows:
        _philox_kernel[(triton.cdiv(num_rows, _BLOCK),)](
            sample_keys_B3.contiguous(),
            positions_B.contiguous(),
            uniforms_B,
            num_rows,
            BLOCK=_BLOCK,
            num_warps=4,
        )
    return uniforms_B
