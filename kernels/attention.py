"""Causal attention whose rows are the same bits however they are computed: packed, chunked or paged.

Keys are taken in blocks of 64 counted from the start of the sequence. Each block gives (max, sum, output) on
its own maximum; blocks are joined by a left fold in block order:

    m' = max(m, m_j)    l' = l e^(m - m') + l_j e^(m_j - m')    o' = o e^(m - m') + o_j e^(m_j - m')

A block that a row may not see folds in as an exact no-op. So a row does not depend on its batch, on chunking,
on padding, or on prefill versus decode, and trainer and engine agree bit for bit. On a CPU it runs in C
(`kernels/cpu/native/`), on a GPU in Triton (`kernels/gpu/`), where keys are read where they lie; all else in tensor
operations (`kernels.attention_fold`). They differ in the last bits, and one process uses one of them throughout.

Shape legend: T = packed rows, N = query heads, M = KV heads, G = N / M, D = width of a head.
"""

import torch
from torch.autograd.function import once_differentiable

from kernels.attention_fold import fold_packed, fold_packed_backward, fold_paged
from kernels.attention_layout import (
    KEY_BLOCK,
    AttentionLayout,
    Segment,
    packed_layout,
    paged_layout,
)
from kernels.backends import runs_in_triton
from kernels.checks import require_dtype
from kernels.cpu.attention import attends_natively, attention_native
from kernels.paged_kv import PagedKV

__all__ = [
    "KEY_BLOCK",
    "AttentionLayout",
    "PagedKV",
    "Segment",
    "attention_reference",
    "packed_attention",
    "packed_layout",
    "paged_attention",
    "paged_layout",
]


def attention_reference(
    q_TND: torch.Tensor, k_TMD: torch.Tensor, v_TMD: torch.Tensor
) -> torch.Tensor:
    """Ground truth for one sequence from its start: [T, N, D], [T, M, D] -> [T, N, D]."""
    group = q_TND.shape[1] // k_TMD.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k_TMD, v_TMD))
    scores = torch.einsum("qnd,knd->nqk", q_TND, k) * q_TND.shape[-1] ** -0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return torch.einsum("nqk,knd->qnd", scores.masked_fill(hidden, float("-inf")).softmax(-1), v)


def paged_attention(q_TND: torch.Tensor, cache: PagedKV, layout: AttentionLayout) -> torch.Tensor:
    """Attends from packed queries to a paged cache that already holds the keys of these queries. Forward only.

    Args:
        q_TND: [T, N, D].
        cache: keys and values of this layer, of the type of q or int8.
        layout: result of `paged_layout`.

    Returns:
        [T, N, D], the type of q.

    Raises:
        ValueError: keys, values or scales have another type or shape.
    """
    _check_keys(q_TND, cache.keys, cache.values, cache.scales)
    if attends_natively(q_TND, cache.keys.shape[1]):
        return _native(
            q_TND, cache.keys, cache.values, layout, scales=cache.scales, lanes=cache.lanes
        )[0]
    if runs_in_triton(q_TND):
        from kernels.gpu.attention.forward import attention_triton

        return attention_triton(q_TND, cache.keys, cache.values, layout, scales=cache.scales)[0]
    return fold_paged(q_TND, cache, layout)


def packed_attention(
    q_TND: torch.Tensor, k_TMD: torch.Tensor, v_TMD: torch.Tensor, layout: AttentionLayout
) -> torch.Tensor:
    """Attends over packed keys; the forward is bit for bit that of `paged_attention`. Differentiable.

    Args:
        q_TND: [T, N, D].
        k_TMD: [T, M, D].
        v_TMD: [T, M, D].
        layout: result of `packed_layout`; the keys of a segment may lie in rows of other segments (shared prompts).

    Returns:
        [T, N, D], the type of q.

    Raises:
        ValueError: keys and values have another type than q, or differ in shape.
    """
    _check_keys(q_TND, k_TMD, v_TMD, None)
    return _PackedAttention.apply(q_TND, k_TMD, v_TMD, layout)  # pyrefly: ignore


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_TND, k_TMD, v_TMD, layout: AttentionLayout):  # pyrefly: ignore
        out_TND, logsumexp_TN = _packed_forward(q_TND, k_TMD, v_TMD, layout)
        ctx.save_for_backward(q_TND, k_TMD, v_TMD, out_TND, logsumexp_TN)
        ctx.layout = layout
        return out_TND

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_TND):  # pyrefly: ignore
        q_TND, k_TMD, v_TMD, out_TND, logsumexp_TN = ctx.saved_tensors
        if runs_in_triton(q_TND):
            from kernels.gpu.attention.backward import attention_backward_triton

            inputs = (q_TND, k_TMD, v_TMD, out_TND, logsumexp_TN)
            return *attention_backward_triton(grad_TND, *inputs, ctx.layout), None
        grads = fold_packed_backward(
            grad_TND, q_TND, (k_TMD, v_TMD), out_TND, logsumexp_TN, ctx.layout
        )
        return *grads, None


def _packed_forward(
    q_TND: torch.Tensor, k_TMD: torch.Tensor, v_TMD: torch.Tensor, layout: AttentionLayout
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the result, and the logsumexp of the scores [T, N]; chooses the implementation."""
    if attends_natively(q_TND, k_TMD.shape[1]):
        return _native(q_TND, k_TMD.contiguous(), v_TMD.contiguous(), layout)
    if runs_in_triton(q_TND):
        from kernels.gpu.attention.forward import attention_triton

        return attention_triton(q_TND, k_TMD, v_TMD, layout)
    return fold_packed(q_TND, k_TMD, v_TMD, layout)


def _check_keys(
    q_TND: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor] | None,
) -> None:
    """Refuses keys and values that differ in shape, or have a type that does not fit q or their scales."""
    if keys.shape != values.shape:
        raise ValueError(
            f"attention: keys and values must have one shape, got {tuple(keys.shape)} and {tuple(values.shape)}"
        )
    if scales is None:
        require_dtype("attention", q_TND.dtype, keys, values)
        return
    require_dtype("attention", torch.int8, keys, values)
    require_dtype("attention", torch.float32, *scales)
    for scale in scales:
        if scale.shape != keys.shape[:-1]:
            raise ValueError(
                f"attention: int8 keys {tuple(keys.shape)} need scales {tuple(keys.shape[:-1])}, got "
                f"{tuple(scale.shape)}"
            )


def _native(
    q_TND: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layout: AttentionLayout,
    *,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    lanes: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Calls attention in C with the tables of the layout."""
    queries_Q3, tasks_W3 = layout.queries_and_tasks
    return attention_native(
        q_TND,
        keys,
        values,
        queries_Q3=queries_Q3,
        tasks_W3=tasks_W3,
        table=layout.table,
        keys_per_index=layout.keys_per_index,
        scales=scales,
        lanes=lanes,
    )
