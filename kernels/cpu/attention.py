"""Launcher of attention in C. Shape legend: T = rows, N = query heads, M = KV heads, D = width of a head."""

import torch

from kernels.cpu.native_functions import native_functions, runs_natively

__all__ = ["attends_natively", "attention_native", "key_lanes", "takes_heads"]

# as in native/attention.c
_MAX_HEAD_DIM = 256
_MAX_GROUP = 32


def attends_natively(q_TND: torch.Tensor, num_kv_heads: int) -> bool:
    """Returns whether `attention_native` takes these queries over so many KV heads."""
    num_heads, head_dim = q_TND.shape[1:]
    return runs_natively(q_TND) and takes_heads(num_heads, num_kv_heads, head_dim)


def takes_heads(num_heads: int, num_kv_heads: int, head_dim: int) -> bool:
    """Returns whether attention in C takes heads of these numbers and this width."""
    if head_dim % 8 or head_dim > _MAX_HEAD_DIM or num_heads % num_kv_heads:
        return False
    return num_heads // num_kv_heads <= _MAX_GROUP


def key_lanes(dtype: torch.dtype) -> int:
    """Returns how many keys attention in C multiplies at a time."""
    return native_functions(dtype).lanes()


def attention_native(
    q_TND: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    queries_Q3: torch.Tensor,
    tasks_W3: torch.Tensor,
    table: torch.Tensor,
    keys_per_index: int,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    lanes: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes block-fold attention; `queries_Q3`, `tasks_W3` and `table` are those of `AttentionLayout`.

    Args:
        q_TND: [T, N, D] queries.
        keys: [rows, M, D] packed (`keys_per_index` 1), or [blocks, M, keys_per_index, D] paged; contiguous.
        values: values, in the layout of the keys.
        queries_Q3: int64.
        tasks_W3: int64.
        table: int64, rows or blocks.
        keys_per_index: number of keys that one entry of the table stands for.
        scales: scales of int8 keys and values, float32 [blocks, M, keys_per_index].
        lanes: number of interleaved keys, as in `kernels.paged_kv.PagedKV`.

    Returns:
        [T, N, D], and the logsumexp of the scores, float32 [T, N]. Rows of no segment are zeros.
    """
    q_TND = q_TND.contiguous()
    num_heads, head_dim = q_TND.shape[1:]
    num_kv_heads = keys.shape[1]
    if not (keys.is_contiguous() and values.is_contiguous()):
        raise ValueError("attention: keys and values must be contiguous")
    key_scales, value_scales = _scale_addresses(scales)
    out_TND = torch.zeros_like(q_TND)
    logsumexp_TN = q_TND.new_zeros(q_TND.shape[:2], dtype=torch.float32)
    native_functions(q_TND.dtype).attention(
        q_TND.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        key_scales,
        value_scales,
        table.data_ptr(),
        keys_per_index,
        num_kv_heads * keys_per_index * head_dim,
        keys_per_index * head_dim,
        lanes if lanes > 1 else 0,
        queries_Q3.data_ptr(),
        tasks_W3.data_ptr(),
        tasks_W3.shape[0],
        out_TND.data_ptr(),
        logsumexp_TN.data_ptr(),
        num_heads,
        num_kv_heads,
        head_dim,
        torch.get_num_threads(),
    )
    return out_TND, logsumexp_TN


def _scale_addresses(
    scales: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[int | None, int | None]:
    """Returns the addresses of the scales of keys and of values; None without scales."""
    if scales is None:
        return None, None
    if not all(scale.is_contiguous() for scale in scales):
        raise ValueError("attention: scales of keys and values must be contiguous")
    return scales[0].data_ptr(), scales[1].data_ptr()
