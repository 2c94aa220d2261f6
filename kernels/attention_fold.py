"""Block-fold attention in tensor operations: any type, any device, and the backward of every path.

Shape legend: as in `kernels.attention`, and S = segments of a bucket, Q = padded queries of a segment,
R = Q * G query rows of one KV head, J = key blocks, C = 64 keys.
"""

from collections.abc import Callable, Sequence

import torch

from kernels.attention_layout import KEY_BLOCK, AttentionBucket, AttentionLayout
from kernels.numerics import accumulate_dtype, as_factor, gemm_row_tile
from kernels.paged_kv import PagedKV

__all__ = ["fold_packed", "fold_packed_backward", "fold_paged"]

LoadBlock = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


def fold_paged(q_TND: torch.Tensor, cache: PagedKV, layout: AttentionLayout) -> torch.Tensor:
    """Attends over a paged cache; returns [T, N, D]."""
    out_TND = torch.zeros_like(q_TND)
    num_kv_heads = cache.keys.shape[1]
    for bucket in layout.buckets:
        queries = _gather_queries(q_TND, bucket, num_kv_heads)
        out, _ = _fold(queries, bucket, lambda j, b=bucket: _load_paged(cache, b, j, q_TND.dtype))
        _scatter_queries(out_TND, out, bucket)
    return out_TND


def fold_packed(
    q_TND: torch.Tensor, k_TMD: torch.Tensor, v_TMD: torch.Tensor, layout: AttentionLayout
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attends over packed keys; returns [T, N, D], and the logsumexp of the scores [T, N] in the accumulation type."""
    out_TND = torch.zeros_like(q_TND)
    logsumexp_TN1 = q_TND.new_zeros(*q_TND.shape[:2], 1, dtype=accumulate_dtype(q_TND.dtype))
    for bucket in layout.buckets:
        queries = _gather_queries(q_TND, bucket, k_TMD.shape[1])
        out, logsumexp = _fold(
            queries, bucket, lambda j, b=bucket: _load_packed(k_TMD, v_TMD, b, j)
        )
        _scatter_queries(out_TND, out, bucket)
        _scatter_queries(logsumexp_TN1, logsumexp, bucket)
    return out_TND, logsumexp_TN1.squeeze(-1)


def fold_packed_backward(
    grad_TND: torch.Tensor,
    q_TND: torch.Tensor,
    keys_values: tuple[torch.Tensor, torch.Tensor],
    out_TND: torch.Tensor,
    logsumexp_TN: torch.Tensor,
    layout: AttentionLayout,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v from what the forward left, whichever path it took."""
    dtype = accumulate_dtype(q_TND.dtype)
    grad_q = torch.zeros_like(q_TND)
    grad_k, grad_v = (torch.zeros(x.shape, dtype=dtype, device=x.device) for x in keys_values)
    num_kv_heads = keys_values[0].shape[1]
    factors = as_factor(keys_values[0]), as_factor(keys_values[1])
    rows = as_factor(q_TND), as_factor(grad_TND), out_TND, logsumexp_TN.unsqueeze(-1)
    for bucket in layout.buckets:
        gathered = [_gather_queries(x, bucket, num_kv_heads) for x in rows]
        _backward_bucket(gathered, factors, bucket, (grad_q, grad_k, grad_v))
    return grad_q, grad_k.to(keys_values[0].dtype), grad_v.to(keys_values[1].dtype)


def _gather_queries(
    x_TND: torch.Tensor, bucket: AttentionBucket, num_kv_heads: int
) -> torch.Tensor:
    """Gathers queries [T, N, D] to [S, M, R, D], query-major rows."""
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
    cache: PagedKV, bucket: AttentionBucket, j: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loads key block j of every segment from a paged cache."""
    _, num_heads, block_size, head_dim = cache.keys.shape
    per_block = KEY_BLOCK // block_size
    blocks = bucket.key_index_SK[:, j * per_block : (j + 1) * per_block]

    def join(x: torch.Tensor) -> torch.Tensor:
        x = x.view(-1, per_block, num_heads, block_size, head_dim).transpose(1, 2)
        return x.reshape(-1, num_heads, KEY_BLOCK, head_dim)

    keys, values = cache.read(blocks.flatten(), dtype)
    return join(keys), join(values)


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
    """Returns scaled scores [S, M, R, 64] in the accumulation type."""
    scores = _matmul(queries_SMRD, keys_SMCD.transpose(-1, -2))
    return scores.to(accumulate_dtype(scores.dtype)) * queries_SMRD.shape[-1] ** -0.5


def _hidden(queries_SMRD: torch.Tensor, bucket: AttentionBucket, j: int) -> torch.Tensor:
    """Returns which keys of block j are after the query's own position, [S, 1, R, 64] bool."""
    group = queries_SMRD.shape[2] // bucket.positions_SQ.shape[1]
    positions_SR = bucket.positions_SQ.repeat_interleave(group, dim=1)
    keys_C = torch.arange(j * KEY_BLOCK, (j + 1) * KEY_BLOCK, device=positions_SR.device)
    return (keys_C > positions_SR[..., None]).unsqueeze(1)


def _block_state(
    queries_SMRD: torch.Tensor, bucket: AttentionBucket, load_block: LoadBlock, j: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns (max, sum, unnormalised output) of key block j, on its own maximum."""
    keys, values = load_block(j)
    hidden = _hidden(queries_SMRD, bucket, j)
    scores = _scores(queries_SMRD, keys).masked_fill_(hidden, float("-inf"))
    if j == bucket.num_key_blocks - 1:
        # past the sequence's end lies what an earlier owner of the block left, and 0 * NaN is NaN
        values = values.masked_fill(hidden.all(2)[..., None], 0)
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
    keys_values: tuple[torch.Tensor, torch.Tensor],
    bucket: AttentionBucket,
    grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """Add one bucket's gradients to (grad_q, grad_k, grad_v); probabilities are recomputed by block."""
    queries, grad_out, out, logsumexp_SMR1 = gathered
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
