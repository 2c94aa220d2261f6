"""Draws tokens of requests, each with its log-probability.

Shape legend: R = rows of logits, B = draws (siblings share a row), V = vocabulary.
"""

from collections.abc import Sequence

import torch

from kernels.philox import philox_uniform
from kernels.sample import keep_top, sample
from kernels.token_logprobs import vocab_sums
from rollout.core import NotFiniteError, RequestState, SamplingParams

__all__ = ["sample_tokens"]

_CHUNK_ROWS = 64  # of [rows, V] in fp32 at a time: 12 MB at V = 49152


@torch.inference_mode()
def sample_tokens(
    logits_RV: torch.Tensor,
    rows: Sequence[int],
    states: Sequence[RequestState],
    positions: Sequence[int],
) -> tuple[list[int], list[float]]:
    """Draws tokens; returns each with its log-probability.

    Args:
        logits_RV: [R, V].
        rows: the row of logits that each of the B draws is from.
        states: the request that each draw is for.
        positions: in the request's log, of the token to draw.

    Returns:
        B token ids, and B log-probabilities (fp32) under the distribution that was drawn from.

    Raises:
        NotFiniteError: logits are not finite; names the request.
    """
    token_ids: list[int] = []
    logprobs: list[float] = []
    for start in range(0, len(rows), _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        tokens_B, logprobs_B = _sample(_take(logits_RV, rows[part]), states[part], positions[part])
        token_ids += tokens_B.tolist()
        logprobs += logprobs_B.tolist()
    return token_ids, logprobs


def _take(logits_RV: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """[B, V]; a view where the rows follow one another, since a copy costs as much as a pass of sampling."""
    first, count = rows[0], len(rows)
    if list(rows) == list(range(first, first + count)):
        return logits_RV[first : first + count]
    return logits_RV[torch.tensor(rows, device=logits_RV.device)]


def _sample(
    logits_BV: torch.Tensor, states: Sequence[RequestState], positions: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    device = logits_BV.device
    params = [state.request.params for state in states]
    temperature_B = torch.tensor(
        [p.temperature for p in params], dtype=torch.float64, device=device
    )
    is_greedy_B = temperature_B == 0
    temperature_B = torch.where(is_greedy_B, 1.0, temperature_B)
    logits_BV = _truncate(logits_BV, params, temperature_B)
    sums = vocab_sums(logits_BV, 1.0 / temperature_B)
    _check_finite(sums.total_T, states, positions)
    keys_B3 = torch.tensor(
        [[k.seed, k.group_id, k.sample_index] for k in (s.request.key for s in states)],
        device=device,
    )
    tokens_B = sample(sums, philox_uniform(keys_B3, torch.tensor(positions, device=device)))
    if bool(is_greedy_B.any()):
        tokens_B = torch.where(is_greedy_B, logits_BV.argmax(-1), tokens_B)
    return tokens_B, sums.logprobs(tokens_B)


def _check_finite(
    total_B: torch.Tensor, states: Sequence[RequestState], positions: Sequence[int]
) -> None:
    """Refuse to draw from logits that hold a NaN or inf, which their sum shows."""
    is_bad_B = ~total_B.isfinite()
    if bool(is_bad_B.any()):
        first = int(is_bad_B.nonzero()[0])
        raise NotFiniteError(
            f"the logits of {int(is_bad_B.sum())} of {len(states)} draws are not finite, first those of request "
            f"{states[first].request.request_id!r} at position {positions[first]}; nothing was sampled from them. The "
            "live weights overflow or are damaged"
        )


def _truncate(
    logits_BV: torch.Tensor, params: Sequence[SamplingParams], temperature_B: torch.Tensor
) -> torch.Tensor:
    """Apply top-k, top-p and min-p to the rows that ask for them."""
    rows = [i for i, p in enumerate(params) if p.truncates]
    if not rows:
        return logits_BV

    def column(values: list[float] | list[int]) -> torch.Tensor:
        return torch.tensor(values, device=logits_BV.device)

    chosen = [params[i] for i in rows]
    logits_BV = logits_BV.clone()
    logits_BV[rows] = keep_top(
        logits_BV[rows],
        temperatures_B=temperature_B[rows].float(),
        top_k_B=column([p.top_k for p in chosen]),
        top_p_B=column([p.top_p for p in chosen]),
        min_p_B=column([p.min_p for p in chosen]),
    )
    return logits_BV
