"""Log-probability of chosen tokens, and the sums over the vocabulary that sampling shares with it.

    logprob = x - max - log(sum exp(x - max)),   x = logits / temperature

The sum runs over fixed blocks of 1,024 tokens, joined in order, so that a row gives the same bits in any
batch: the sampler's log-probability and the loss's are one function.

Shape legend: T = rows, V = vocabulary, J = ceil(V / 1024) blocks.
"""

from dataclasses import dataclass

import torch

from kernels.backends import runs_in_triton
from kernels.checks import require_rows
from kernels.cpu.native_functions import runs_natively
from kernels.cpu.vocabulary import vocab_sums_native
from kernels.numerics import VOCAB_BLOCK, accumulate_dtype

__all__ = [
    "VOCAB_BLOCK",
    "VocabSums",
    "token_logprobs",
    "token_logprobs_reference",
    "vocab_sums",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabSums:
    """Result of a pass over the logits, with x = logits / temperature - maximum. fp32, or float64 for float64 logits."""

    logits_TV: torch.Tensor
    inverse_temperature_T: torch.Tensor
    maximum_T: torch.Tensor  # of logits / temperature
    cumulative_TJ: torch.Tensor  # sum of e^x up to and including each block
    moment_T: torch.Tensor | None = None  # sum of x e^x

    @property
    def total_T(self) -> torch.Tensor:
        return self.cumulative_TJ[:, -1]

    def scaled(self, logits_TC: torch.Tensor) -> torch.Tensor:
        """Returns x of some columns of the logits."""
        scaled = logits_TC.to(self.maximum_T.dtype) * self.inverse_temperature_T[:, None]
        return scaled.sub_(self.maximum_T[:, None])

    def logprobs(self, token_ids_T: torch.Tensor) -> torch.Tensor:
        """Returns [T], the log-probability of one token per row, in nats."""
        logits_T1 = self.logits_TV.gather(-1, token_ids_T[:, None])
        return self.scaled(logits_T1).squeeze(-1) - self.total_T.log()

    def entropy(self) -> torch.Tensor:
        """Returns [T], the entropy in nats. Needs sums computed `with_moment`."""
        assert self.moment_T is not None, "vocab_sums was asked for no moment"
        return self.total_T.log() - self.moment_T / self.total_T


def vocab_sums(
    logits_TV: torch.Tensor, inverse_temperature_T: torch.Tensor, *, with_moment: bool = False
) -> VocabSums:
    """Sums rows of logits [T, V], each at its own temperature. A row of only -inf, or with a NaN, gives NaN.

    In C on CPUs and in Triton on GPUs: passes that write nothing as large as the logits.

    Raises:
        ValueError: there is not one temperature per row.
    """
    require_rows("vocab_sums", len(logits_TV), inverse_temperature_T)
    inverse_T = inverse_temperature_T.to(accumulate_dtype(logits_TV.dtype))
    if runs_natively(logits_TV):
        logits_TV = logits_TV.contiguous()
        maximum_T, cumulative_TJ, moment_T = vocab_sums_native(
            logits_TV, inverse_T, with_moment=with_moment
        )
    elif runs_in_triton(logits_TV):
        from kernels.gpu.vocabulary.sums import vocab_sums_triton

        maximum_T, cumulative_TJ, moment_T = vocab_sums_triton(
            logits_TV, inverse_T, with_moment=with_moment
        )
    else:
        maximum_T, cumulative_TJ, moment_T = _vocab_sums_tensors(
            logits_TV, inverse_T, with_moment=with_moment
        )
    return VocabSums(
        logits_TV=logits_TV,
        inverse_temperature_T=inverse_T,
        maximum_T=maximum_T,
        cumulative_TJ=cumulative_TJ,
        moment_T=moment_T,
    )


def _vocab_sums_tensors(
    logits_TV: torch.Tensor, inverse_T: torch.Tensor, *, with_moment: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Returns maximum, cumulative sums and moment, computed in tensor operations on any device."""
    scaled = logits_TV.to(inverse_T.dtype) * inverse_T[:, None]
    maximum_T = scaled.amax(-1)
    scaled -= maximum_T[:, None]
    weights = scaled.exp()
    cumulative_TJ = _block_sums(weights).cumsum(-1)
    # -inf has no weight, and 0 * -inf is NaN
    products = torch.where(weights == 0, 0, scaled * weights) if with_moment else None
    moment_T = None if products is None else _block_sums(products).sum(-1)
    return maximum_T, cumulative_TJ, moment_T


def _block_sums(x_TV: torch.Tensor) -> torch.Tensor:
    """Sums [T, V] by block, to [T, J]."""
    num_full = x_TV.shape[-1] // VOCAB_BLOCK
    full, tail = x_TV.tensor_split([num_full * VOCAB_BLOCK], dim=-1)
    sums = full.unflatten(-1, (num_full, VOCAB_BLOCK)).sum(-1)
    return torch.cat([sums, tail.sum(-1, keepdim=True)], dim=-1) if tail.shape[-1] else sums


def token_logprobs_reference(
    logits_TV: torch.Tensor, token_ids_T: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """Ground truth: PyTorch's log_softmax."""
    scaled = logits_TV.to(accumulate_dtype(logits_TV.dtype)) / temperature
    return torch.log_softmax(scaled, dim=-1).gather(-1, token_ids_T[:, None]).squeeze(-1)


def token_logprobs(
    logits_TV: torch.Tensor, token_ids_T: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """Returns the log-probability of `token_ids_T[t]` under `softmax(logits_TV[t] / temperature)`. Forward only.

    Args:
        logits_TV: [T, V], any float type.
        token_ids_T: [T] int64, each in [0, V).
        temperature: > 0; the temperature of the sampler, or old and new log-probabilities are of different policies.

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
