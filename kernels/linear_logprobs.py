"""Fused LM head and log-probability: never holds [T, V], neither forward nor backward.

    logits = h W^T,   logprob = x[token] - logsumexp(x),   x = logits / temperature
    d logits = g (onehot(token) - softmax(x)) / temperature,   recomputed chunk by chunk

Shape legend: T = rows, H = width, V = vocabulary. Memory: one [chunk, V] in fp32 instead of several [T, V].
The forward is `kernels.linear.head_logits` and `kernels.token_logprobs`, bit for bit what the sampler computes.
"""

import torch

from kernels.backends import runs_in_triton
from kernels.linear import head_logits
from kernels.numerics import accumulate_dtype, as_factor, factor_dtype
from kernels.token_logprobs import vocab_sums

__all__ = ["linear_logprobs", "linear_logprobs_reference"]

_CHUNK_ELEMENTS = 1 << 23  # of [rows, V]: 32 MB in fp32, on a CPU
_GPU_CHUNK_ELEMENTS = 1 << 27


def linear_logprobs_reference(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    token_ids_T: torch.Tensor,
    *,
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ground truth: materialises [T, V] and leaves the gradient to autograd."""
    logits = torch.nn.functional.linear(hidden_TH, weight_VH)
    logprobs_TV = (logits.to(accumulate_dtype(logits.dtype)) / temperature).log_softmax(-1)
    entropy_T = -(logprobs_TV.exp() * logprobs_TV).sum(-1).detach()
    return logprobs_TV.gather(-1, token_ids_T[:, None]).squeeze(-1), entropy_T


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_TH, weight_VH, token_ids_T, inverse_temperature):  # pyrefly: ignore
        chunks = [
            _chunk_forward(hidden_TH[rows], weight_VH, token_ids_T[rows], inverse_temperature)
            for rows in _chunks(hidden_TH, weight_VH)
        ]
        logprobs_T, entropy_T, maximum_T, total_T = map(torch.cat, zip(*chunks, strict=True))
        ctx.save_for_backward(hidden_TH, weight_VH, token_ids_T, maximum_T, total_T)
        ctx.inverse_temperature = inverse_temperature
        ctx.mark_non_differentiable(entropy_T)
        return logprobs_T, entropy_T

    @staticmethod
    def backward(ctx, grad_logprobs_T, _grad_entropy_T):  # pyrefly: ignore
        hidden_TH, weight_VH, token_ids_T, maximum_T, total_T = ctx.saved_tensors
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        grad_hidden_TH = torch.zeros_like(hidden_TH) if needs_hidden else None
        dtype = accumulate_dtype(weight_VH.dtype)
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=dtype) if needs_weight else None
        factor_VH = as_factor(weight_VH)
        for rows in _chunks(hidden_TH, weight_VH):
            grad_logits = _chunk_backward(
                grad_logprobs_T[rows],
                hidden_TH[rows],
                weight_VH,
                token_ids_T[rows],
                (maximum_T[rows], total_T[rows]),
                ctx.inverse_temperature,
            )
            if grad_hidden_TH is not None:
                grad_hidden_TH[rows] = grad_logits @ factor_VH
            if grad_weight_VH is not None:
                _add_product(grad_weight_VH, grad_logits.T, as_factor(hidden_TH[rows]))
            del grad_logits  # before the next one is made
        if grad_weight_VH is not None:
            grad_weight_VH = grad_weight_VH.to(weight_VH.dtype)
        return grad_hidden_TH, grad_weight_VH, None, None


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """total += a b, without a copy of the product where the types allow."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


# functions of their own, so that the logits of a chunk are gone when the next are made


def _chunk_forward(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    token_ids_T: torch.Tensor,
    inverse_temperature: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns log-probabilities, entropies, and maxima and totals of `VocabSums`, each [T]."""
    logits_TV = head_logits(hidden_TH, weight_VH)
    inverse_T = logits_TV.new_full((len(logits_TV),), inverse_temperature, dtype=torch.float64)
    sums = vocab_sums(logits_TV, inverse_T, with_moment=True)
    # a copy: the total is a slice of all blocks' sums
    return sums.logprobs(token_ids_T), sums.entropy(), sums.maximum_T, sums.total_T.clone()


def _chunk_backward(
    grad_logprobs_T: torch.Tensor,
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    token_ids_T: torch.Tensor,
    sums: tuple[torch.Tensor, torch.Tensor],
    inverse_temperature: float,
) -> torch.Tensor:
    """Returns the gradient of the logits [T, V]; `sums` are their maxima and totals."""
    maximum_T, total_T = sums
    if runs_in_triton(hidden_TH):
        from kernels.gpu.vocabulary.grad_logits import grad_logits_triton

        inverse_T = torch.full_like(maximum_T, inverse_temperature)
        per_row = (inverse_T, token_ids_T, maximum_T, total_T, grad_logprobs_T)
        return grad_logits_triton(hidden_TH, weight_VH, *per_row).to(factor_dtype(weight_VH))
    grad_T1 = grad_logprobs_T[:, None] * inverse_temperature
    logits = head_logits(hidden_TH, weight_VH).to(maximum_T.dtype).mul_(inverse_temperature)
    weights = logits.sub_(maximum_T[:, None]).exp_()
    grad_logits = weights.mul_(-grad_T1 / total_T[:, None])
    grad_logits.scatter_add_(-1, token_ids_T[:, None], grad_T1)
    return grad_logits.to(factor_dtype(weight_VH))


def _chunks(hidden_TH: torch.Tensor, weight_VH: torch.Tensor) -> list[slice]:
    elements = _GPU_CHUNK_ELEMENTS if hidden_TH.is_cuda else _CHUNK_ELEMENTS
    size = max(64, elements // weight_VH.shape[0])
    return [slice(start, start + size) for start in range(0, max(len(hidden_TH), 1), size)]


def linear_logprobs(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    token_ids_T: torch.Tensor,
    *,
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of `token_ids_T` under the LM head, and the entropy of each row's distribution.

    Args:
        hidden_TH: [T, H] after the final norm.
        weight_VH: [V, H], the LM head, of the same type.
        token_ids_T: [T] int64.
        temperature: > 0, the sampler's.

    Returns:
        logprobs [T] (differentiable) and entropy [T] (a metric, detached), in nats, fp32 or float64.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}; greedy has no gradient")
    return _LinearLogprobs.apply(  # pyrefly: ignore
        hidden_TH, weight_VH, token_ids_T, 1.0 / temperature
    )
