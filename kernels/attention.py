"""Causal attention whose rows are the same bits however they are computed: packed, chunked or paged.

Keys are taken in blocks of 64 counted from the start of the sequence. Each block gives (max, sum, output) on
its own maximum; blocks are joined by a left fold in block order:

    m' = max(m, m_j)    l' = l e^(m - m') + l_j e^(m_j - m')    o' = o e^(m - m') + o_j e^(m_j - m')

A block that a row may not see folds in as an exact no-op. So a row does not depend on its batch, on chunking,
on padding, or on prefill versus decode, and trainer and engine agree bit for bit.

Shape legend: T = packed rows, N = query heads, M = KV heads, G = N / M, D = width of a head, S = segments of
a bucket, Q = padded queries of a segment, R = Q * G query rows of one KV head, J = key blocks, C = 64 keys.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kernels.numerics import accumulate_dtype, gemm_row_tile

__all__ = [
    "KEY_BLOCK",
    "AttentionBucket",
    "AttentionLayout",
    "PagedKV",
    "Segment",
    "attention_reference",
    "packed_attention",
    "packed_layout",
    "paged_attention",
    "paged_layout",
]

KEY_BLOCK = 64

LoadBlock = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Queries at consecutive positions of one sequence, in consecutive packed rows."""

    first_row: int  # of the queries, in the packed tensor
    num_queries: int
    first_position: (
        int  # of the queries, in the sequence; they see the keys up to their own position
    )
    key_index: Sequence[
        int
    ]  # where the sequence's keys are: packed rows, or block ids of the paged cache


@dataclass(frozen=True, slots=True)
class AttentionBucket:
    """Segments of similar shape, padded to one with copies of each segment's own first query and first key.

    A padded query, at position -1, sees nothing, and nobody sees a padded key. They are the segment's own
    because 0 * NaN is NaN: a broken sequence must not reach the others.
    """

    query_rows_SQ: torch.Tensor
    positions_SQ: torch.Tensor
    key_index_SK: (
        torch.Tensor
    )  # packed rows, K = J * 64; or block ids, K = J * blocks per key block
    num_key_blocks: int


@dataclass(frozen=True, slots=True)
class AttentionLayout:
    """Who sees whom in one forward; the same for every layer."""

    buckets: tuple[AttentionBucket, ...]
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedKV:
    """One layer's cache: [blocks, M, block_size, D] keys and values. Unwritten slots must be finite."""

    keys: torch.Tensor
    values: torch.Tensor

    def write(
        self,
        k_TMD: torch.Tensor,
        v_TMD: torch.Tensor,
        block_ids_T: torch.Tensor,
        offsets_T: torch.Tensor,
    ) -> None:
        self.keys[block_ids_T, :, offsets_T] = k_TMD
        self.values[block_ids_T, :, offsets_T] = v_TMD


def packed_layout(
    segments: Sequence[Segment], *, num_rows: int, device: torch.device | str = "cpu"
) -> AttentionLayout:
    """Layout over packed keys: `key_index` of a segment holds the row of the key at each position."""
    return _layout(segments, 1, num_rows, device)


def paged_layout(
    segments: Sequence[Segment],
    *,
    num_rows: int,
    block_size: int,
    device: torch.device | str = "cpu",
) -> AttentionLayout:
    """Layout over a paged cache: `key_index` of a segment is its block table."""
    return _layout(segments, block_size, num_rows, device)


def _layout(
    segments: Sequence[Segment], keys_per_index: int, num_rows: int, device: torch.device | str
) -> AttentionLayout:
    buckets: dict[tuple[int, int], list[Segment]] = {}
    for segment in segments:
        last = segment.first_position + segment.num_queries
        num_key_blocks = -(-last // KEY_BLOCK)
        shape = (num_key_blocks, (segment.num_queries - 1).bit_length())
        buckets.setdefault(shape, []).append(segment)
    return AttentionLayout(
        tuple(
            _bucket(members, num_key_blocks, KEY_BLOCK // keys_per_index, device)
            for (num_key_blocks, _), members in sorted(buckets.items())
        ),
        num_rows,
    )


def _bucket(
    segments: Sequence[Segment],
    num_key_blocks: int,
    indices_per_block: int,
    device: torch.device | str,
) -> AttentionBucket:
    width = max(s.num_queries for s in segments)
    offsets_Q = torch.arange(width)
    first_S1 = torch.tensor([[s.first_row, s.first_position, s.num_queries] for s in segments])
    row, position, count = first_S1.unsqueeze(-1).unbind(1)
    is_query = offsets_Q < count
    num_indices = num_key_blocks * indices_per_block
    keys = [
        [*s.key_index[:num_indices], *[s.key_index[0]] * (num_indices - len(s.key_index))]
        for s in segments
    ]
    return AttentionBucket(
        torch.where(is_query, row + offsets_Q, row).to(device),
        torch.where(is_query, position + offsets_Q, -1).to(device),
        torch.tensor(keys, dtype=torch.int64).to(device),
        num_key_blocks,
    )


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
    """Attention of packed queries over a paged cache that already holds their own keys. Forward only.

    Args:
        q_TND: [T, N, D].
        cache: this layer's keys and values, of the same type.
        layout: from `paged_layout`.

    Returns:
        [T, N, D], the type of q.
    """
    out_TND = torch.zeros_like(q_TND)
    num_kv_heads = cache.keys.shape[1]
    for bucket in layout.buckets:
        queries = _gather_queries(q_TND, bucket, num_kv_heads)
        out, _ = _fold(queries, bucket, lambda j, b=bucket: _load_paged(cache, b, j))
        _scatter_queries(out_TND, out, bucket)
    return out_TND


def packed_attention(
    q_TND: torch.Tensor, k_TMD: torch.Tensor, v_TMD: torch.Tensor, layout: AttentionLayout
) -> torch.Tensor:
    """Attention over packed keys, the forward bit for bit that of `paged_attention`. Differentiable.

    Args:
        q_TND: [T, N, D].
        k_TMD: [T, M, D].
        v_TMD: [T, M, D].
        layout: from `packed_layout`; a segment's keys may lie in other segments' rows (shared prompts).

    Returns:
        [T, N, D], the type of q.
    """
    return _PackedAttention.apply(q_TND, k_TMD, v_TMD, layout)  # pyrefly: ignore


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_TND, k_TMD, v_TMD, layout: AttentionLayout):  # pyrefly: ignore
        out_TND = torch.zeros_like(q_TND)
        logsumexps = []
        for bucket in layout.buckets:
            queries = _gather_queries(q_TND, bucket, k_TMD.shape[1])
            out, logsumexp = _fold(
                queries, bucket, lambda j, b=bucket: _load_packed(k_TMD, v_TMD, b, j)
            )
            _scatter_queries(out_TND, out, bucket)
            logsumexps.append(logsumexp)
        ctx.save_for_backward(q_TND, k_TMD, v_TMD, out_TND, *logsumexps)
        ctx.layout = layout
        return out_TND

    @staticmethod
    def backward(ctx, grad_TND):  # pyrefly: ignore
        q_TND, k_TMD, v_TMD, out_TND, *logsumexps = ctx.saved_tensors
        dtype = accumulate_dtype(q_TND.dtype)
        grad_q = torch.zeros_like(q_TND)
        grad_k, grad_v = (
            torch.zeros(x.shape, dtype=dtype, device=x.device) for x in (k_TMD, v_TMD)
        )
        for bucket, logsumexp in zip(ctx.layout.buckets, logsumexps, strict=True):
            gathered = [
                _gather_queries(x, bucket, k_TMD.shape[1]) for x in (q_TND, grad_TND, out_TND)
            ]
            _backward_bucket(gathered, logsumexp, (k_TMD, v_TMD), bucket, (grad_q, grad_k, grad_v))
        return grad_q, grad_k.to(k_TMD.dtype), grad_v.to(v_TMD.dtype), None


def _gather_queries(
    x_TND: torch.Tensor, bucket: AttentionBucket, num_kv_heads: int
) -> torch.Tensor:
    """[T, N, D] -> [S, M, R, D], query-major rows."""
    num_segments, width = bucket.query_rows_SQ.shape
    x = x_TND.index_select(0, bucket.query_rows_SQ.flatten())
    x = x.view(num_segments, width, num_kv_heads, -1, x_TND.shape[-1]).transpose(1, 2)
    return x.reshape(num_segments, num_kv_heads, -1, x_TND.shape[-1])


def _scatter_queries(out_TND: torch.Tensor, x_SMRD: torch.Tensor, bucket: AttentionBucket) -> None:
    """Write [S, M, R, D] back to the packed rows of [T, N, D], leaving padding out."""
    num_segments, width = bucket.query_rows_SQ.shape
    num_kv_heads, head_dim = x_SMRD.shape[1], x_SMRD.shape[-1]
    x = x_SMRD.view(num_segments, num_kv_heads, width, -1, head_dim).transpose(1, 2)
    is_query = bucket.positions_SQ >= 0
    rows = x.reshape(num_segments, width, *out_TND.shape[1:])[is_query]
    out_TND[bucket.query_rows_SQ[is_query]] = rows.to(out_TND.dtype)


def _load_packed(
    k_TMD: torch.Tensor, v_TMD: torch.Tensor, bucket: AttentionBucket, j: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Key block j of every segment: [S, M, 64, D] keys and values, contiguous."""
    rows_SC = bucket.key_index_SK[:, j * KEY_BLOCK : (j + 1) * KEY_BLOCK]

    def load(x_TMD: torch.Tensor) -> torch.Tensor:
        x = x_TMD.index_select(0, rows_SC.flatten()).view(*rows_SC.shape, *x_TMD.shape[1:])
        return x.transpose(1, 2).contiguous()

    return load(k_TMD), load(v_TMD)


def _load_paged(
    cache: PagedKV, bucket: AttentionBucket, j: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from a paged cache."""
    _, num_heads, block_size, head_dim = cache.keys.shape
    per_block = KEY_BLOCK // block_size
    blocks = bucket.key_index_SK[:, j * per_block : (j + 1) * per_block]

    def load(x: torch.Tensor) -> torch.Tensor:
        x = x.index_select(0, blocks.flatten())
        x = x.view(-1, per_block, num_heads, block_size, head_dim).transpose(1, 2)
        return x.reshape(-1, num_heads, KEY_BLOCK, head_dim)

    return load(cache.keys), load(cache.values)


def _matmul(a_SMRK: torch.Tensor, b_SMKC: torch.Tensor) -> torch.Tensor:
    """Batched GEMM with rows padded to the probed tile, so that a row's bits do not depend on R or S."""
    num_rows, inner = a_SMRK.shape[-2:]
    tile = gemm_row_tile(inner, b_SMKC.shape[-1], a_SMRK.dtype, a_SMRK.device)
    if tile == 0:
        raise RuntimeError(
            f"attention: no row multiple up to 64 makes a [{inner} x {b_SMKC.shape[-1]}] {a_SMRK.dtype} GEMM "
            "independent of the batch on this device; use another model.dtype"
        )
    missing = -num_rows % tile
    if missing:
        a_SMRK = torch.nn.functional.pad(a_SMRK, (0, 0, 0, missing))
    return torch.matmul(a_SMRK, b_SMKC)[..., :num_rows, :]


def _scores(queries_SMRD: torch.Tensor, keys_SMCD: torch.Tensor) -> torch.Tensor:
    """[S, M, R, 64] scaled scores in the accumulation type."""
    scores = _matmul(queries_SMRD, keys_SMCD.transpose(-1, -2))
    return scores.to(accumulate_dtype(scores.dtype)) * queries_SMRD.shape[-1] ** -0.5


def _hidden(queries_SMRD: torch.Tensor, bucket: AttentionBucket, j: int) -> torch.Tensor:
    """[S, 1, R, 64] bool: keys of block j after the query's own position."""
    group = queries_SMRD.shape[2] // bucket.positions_SQ.shape[1]
    positions_SR = bucket.positions_SQ.repeat_interleave(group, dim=1)
    keys_C = torch.arange(j * KEY_BLOCK, (j + 1) * KEY_BLOCK, device=positions_SR.device)
    return (keys_C > positions_SR[..., None]).unsqueeze(1)


def _block_state(
    queries_SMRD: torch.Tensor, bucket: AttentionBucket, load_block: LoadBlock, j: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Key block j alone, on its own maximum: (max, sum, unnormalised output)."""
    keys, values = load_block(j)
    scores = _scores(queries_SMRD, keys).masked_fill_(
        _hidden(queries_SMRD, bucket, j), float("-inf")
    )
    maximum = scores.amax(-1, keepdim=True)
    # a block that the row does not see: exp(-inf - finite) = 0 instead of exp(-inf + inf) = NaN
    weights = scores.sub_(maximum.clamp(min=torch.finfo(scores.dtype).min)).exp_()
    output = _matmul(weights.to(values.dtype), values).to(weights.dtype)
    return maximum, weights.sum(-1, keepdim=True), output


def _fold(
    queries_SMRD: torch.Tensor, bucket: AttentionBucket, load_block: LoadBlock
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold key blocks from left to right: [S, M, R, D] output and [S, M, R, 1] logsumexp of the scores."""
    maximum, total, output = _block_state(queries_SMRD, bucket, load_block, 0)
    for j in range(1, bucket.num_key_blocks):
        block_max, block_total, block_output = _block_state(queries_SMRD, bucket, load_block, j)
        new_max = torch.maximum(maximum, block_max)
        keep, add = (maximum - new_max).exp_(), (block_max - new_max).exp_()
        total = total * keep + block_total * add
        output = output * keep + block_output * add
        maximum = new_max
    return output / total, maximum + total.log()


def _backward_bucket(
    gathered: Sequence[torch.Tensor],
    logsumexp_SMR1: torch.Tensor,
    keys_values: tuple[torch.Tensor, torch.Tensor],
    bucket: AttentionBucket,
    grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """Add one bucket's gradients to (grad_q, grad_k, grad_v); probabilities are recomputed by block."""
    queries, grad_out, out = gathered
    grad_q_TND, grad_k_TMD, grad_v_TMD = grads
    dtype = logsumexp_SMR1.dtype
    # padding gathered the first query's gradient; it must not count twice
    group = queries.shape[2] // bucket.positions_SQ.shape[1]
    is_query = (bucket.positions_SQ >= 0).repeat_interleave(group, dim=1)[:, None, :, None]
    grad_out = torch.where(is_query, grad_out, 0)
    delta = (grad_out.to(dtype) * out.to(dtype)).sum(-1, keepdim=True)
    grad_queries = torch.zeros(queries.shape, dtype=dtype, device=queries.device)
    scale = queries.shape[-1] ** -0.5
    for j in range(bucket.num_key_blocks):
        keys, values = _load_packed(*keys_values, bucket, j)
        hidden = _hidden(queries, bucket, j) | ~is_query
        weights = (_scores(queries, keys) - logsumexp_SMR1).exp_().masked_fill_(hidden, 0)
        grad_weights = torch.matmul(grad_out, values.transpose(-1, -2)).to(dtype)
        grad_scores = (weights * (grad_weights - delta) * scale).to(queries.dtype)
        grad_queries += torch.matmul(grad_scores, keys)
        rows = bucket.key_index_SK[:, j * KEY_BLOCK : (j + 1) * KEY_BLOCK].flatten()
        for grad, left, right in (
            (grad_k_TMD, grad_scores, queries),
            (grad_v_TMD, weights.to(values.dtype), grad_out),
        ):
            block = torch.matmul(left.transpose(-1, -2), right).transpose(1, 2)
            grad.index_add_(0, rows, block.reshape(-1, *grad.shape[1:]).to(dtype))
    _scatter_queries(grad_q_TND, grad_queries, bucket)
