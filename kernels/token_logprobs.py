"""Log-probability of chosen tokens, and the sums over the vocabulary that sampling shares with it.

    logprob = x - max - log(sum exp(x - max)),   x = logits / temperature

The sum runs over fixed blocks of 1,024 tokens, joined in order, so that a row gives the same bits in any
batch: the sampler's log-probability and the loss's are one function.

Shape legend: T = rows, V = vocabulary, J = ceil(V / 1024) blocks.
"""

from dataclasses import dataclass

import torch

from kernels.numerics import accumulate_dtype

__all__ = [
    "VOCAB_BLOCK",
    "VocabSums",
    "token_logprobs",
    "token_logprobs_reference",
    "vocab_sums",
]

VOCAB_BLOCK = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabSums:
    """What one pass over the logits leaves. fp32 for bf16 and fp32 logits, float64 for float64."""

    scaled_TV: torch.Tensor  # logits / temperature - max
    weights_TV: torch.Tensor  # exp(scaled)
    cumulative_TJ: torch.Tensor  # sum of weights up to and including each block

    @property
    def log_total_T(self) -> torch.Tensor:
        return self.cumulative_TJ[:, -1].log()

    def logprobs(self, token_ids_T: torch.Tensor) -> torch.Tensor:
        """[T] log-probability of one token per row, in nats."""
        return self.scaled_TV.gather(-1, token_ids_T[:, None]).squeeze(-1) - self.log_total_T

    def entropy(self) -> torch.Tensor:
        """[T], in nats. Needs finite logits: 0 * -inf is NaN."""
        # a dot product per row: one pass, where multiply and sum are two and a buffer
        mean_T11 = torch.bmm(self.weights_TV[:, None, :], self.scaled_TV[:, :, None])
        return self.log_total_T - mean_T11.flatten() / self.cumulative_TJ[:, -1]


def vocab_sums(logits_TV: torch.Tensor, inverse_temperature_T: torch.Tensor) -> VocabSums:
    """One pass over [T, V] logits, each row at its own temperature. Rows of -inf alone give NaN."""
    dtype = accumulate_dtype(logits_TV.dtype)
    scaled = logits_TV.to(dtype) * inverse_temperature_T.to(dtype)[:, None]
    scaled -= scaled.amax(-1, keepdim=True)
    weights = scaled.exp()
    num_full = weights.shape[-1] // VOCAB_BLOCK
    full, tail = weights.tensor_split([num_full * VOCAB_BLOCK], dim=-1)
    sums = full.unflatten(-1, (num_full, VOCAB_BLOCK)).sum(-1)
    if tail.shape[-1]:
        sums = torch.cat([sums, tail.sum(-1, keepdim=True)], dim=-1)
    return VocabSums(scaled_TV=scaled, weights_TV=weights, cumulative_TJ=sums.cumsum(-1))


def token_logprobs_reference(
    logits_TV: torch.Tensor, token_ids_T: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """Ground truth: PyTorch's log_softmax."""
    scaled = logits_TV.to(accumulate_dtype(logits_TV.dtype)) / temperature
    return torch.log_softmax(scaled, dim=-1).gather(-1, token_ids_T[:, None]).squeeze(-1)


def token_logprobs(
    logits_TV: torch.Tensor, token_ids_T: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """Log-probability of `token_ids_T[t]` under `softmax(logits_TV[t] / temperature)`. Forward only.

    Args:
        logits_TV: [T, V], any float type.
        token_ids_T: [T] int64, each in [0, V).
        temperature: > 0; pass the sampler's, or old and new logprobs are of different policies.

    Returns:
        [T] in nats, fp32 (float64 for float64).
    """
    if logits_TV.ndim != 2 or token_ids_T.shape != logits_TV.shape[:1]:
        raise ValueError(
            "expected logits [T, V] and token_ids [T], got "
            f"{tuple(logits_TV.shape)} and {tuple(token_ids_T.shape)}"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}; for greedy use argmax")
    inverse = logits_TV.new_full((logits_TV.shape[0],), 1.0, dtype=torch.float64) / temperature
    return vocab_sums(logits_TV, inverse).logprobs(token_ids_T)
