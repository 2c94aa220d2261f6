"""Attention whose keys are split over programs: the states of all key blocks, and the kernel that folds them in order.

Shape legend: as in `kernels.attention`, and Q = queries, J = key blocks.
"""

import torch
import triton
import triton.language as tl

from kernels.attention_layout import KEY_BLOCK
from kernels.gpu.attention.tasks import AttentionTasks
from kernels.gpu.attention.tiles import fold_scales

__all__ = ["blocks_of_a_program", "fold_states", "new_states"]

_BLOCKS_PER_PROGRAM = 8
"""Key blocks of one program where a sequence's keys are split."""
_BUSY_PROGRAMS = 264
"""Programs from which on keys are not split: two for each multiprocessor of an H100. Bits do not depend on it."""


@triton.jit
def _fold_states_kernel(
    state_ptr,  # [Q, N, J, D] fp32
    state_sums_ptr,  # [Q, N, J, 2] fp32: maximum, sum
    queries_ptr,  # [Q, 2] int32: row, position
    out_ptr,  # [T, N, D] dense, written
    logsumexp_ptr,  # [T, N] fp32, written
    num_heads,
    num_key_blocks,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
):
    query, n = tl.program_id(0), tl.program_id(1)
    row = tl.load(queries_ptr + query * 2).to(tl.int64)
    position = tl.load(queries_ptr + query * 2 + 1)
    columns = tl.arange(0, BLOCK_D)
    is_column = columns < WIDTH
    first = (query.to(tl.int64) * num_heads + n) * num_key_blocks
    maximum = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    out = tl.zeros((BLOCK_D,), tl.float32)
    one = tl.arange(0, 1)
    for block in range(0, position // KEY_BLOCK + 1):
        state = first + block
        block_maximum = tl.load(state_sums_ptr + state * 2 + one)
        block_total = tl.load(state_sums_ptr + state * 2 + 1 + one)
        block_out = tl.load(state_ptr + state * WIDTH + columns, mask=is_column, other=0.0)
        maximum, keep, add = fold_scales(maximum, block_maximum)
        total = total * keep + block_total * add
        out = out * keep + block_out * add
    to_out = out_ptr + (row * num_heads + n) * WIDTH + columns
    tl.store(to_out, (out / total).to(out_ptr.dtype.element_ty), mask=is_column)
    tl.store(logsumexp_ptr + row * num_heads + n + one, maximum + tl.log(total))


def blocks_of_a_program(tasks: AttentionTasks, num_kv_heads: int, wanted: int | None) -> int:
    """Key blocks that a program takes; 0: all. `wanted` None: split where there would be too few programs."""
    if wanted is None:
        is_busy = len(tasks.tasks_W4) * num_kv_heads >= _BUSY_PROGRAMS
        wanted = 0 if is_busy else _BLOCKS_PER_PROGRAM
    return wanted if tasks.num_key_blocks > wanted else 0


def new_states(tasks: AttentionTasks, q_TND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rooms for the states of all key blocks of all queries."""
    shape = (len(tasks.queries_Q2), q_TND.shape[1], tasks.num_key_blocks)
    new = {"dtype": torch.float32, "device": q_TND.device}
    return torch.empty(*shape, q_TND.shape[2], **new), torch.empty(*shape, 2, **new)


def fold_states(
    states: tuple[torch.Tensor, torch.Tensor],
    tasks: AttentionTasks,
    out_TND: torch.Tensor,
    logsumexp_TN: torch.Tensor,
) -> None:
    """Fills the rows of all queries of `out_TND` and `logsumexp_TN`."""
    num_heads, head_dim = out_TND.shape[1:]
    _fold_states_kernel[(len(tasks.queries_Q2), num_heads)](
        *states,
        tasks.queries_Q2,
        out_TND,
        logsumexp_TN,
        num_heads,
        tasks.num_key_blocks,
        WIDTH=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        KEY_BLOCK=KEY_BLOCK,
        num_warps=1,
        enable_fp_fusion=False,
    )
