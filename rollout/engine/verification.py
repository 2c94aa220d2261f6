"""Verification: a token is drawn at every position computed, and kept while the draft before it was right.

Each position is drawn with its own keyed uniform, so what a request gets never depends on what was drafted for it. A batch
without drafts is the case of drafts of no tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice

import torch

from rollout.core import FinishReason, RequestState, StepBatch
from rollout.engine.sampler import sample_tokens
from rollout.engine.scheduler import Scheduler

__all__ = ["Drawn", "draft_limits", "draw", "keep"]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Tokens that a step drew for one request: one after its log, and one after each token of its draft."""

    state: RequestState
    draft: tuple[int, ...]
    token_ids: tuple[int, ...]  # one more than the draft has
    logprobs: tuple[float, ...]


def draft_limits(batch: StepBatch, *, max_context_tokens: int) -> Mapping[RequestState, int]:
    """Returns how many draft tokens each request could keep, except requests with followers. One more token is drawn in any case."""
    limits = {}
    for chunk in batch.chunks:
        state = chunk.state
        if chunk.samples and not state.followers:
            left = state.request.params.max_tokens - state.num_output
            limit = min(left, max_context_tokens - len(state.token_ids)) - 1
            if limit > 0:
                limits[state] = limit
    return limits


def draw(scheduler: Scheduler, batch: StepBatch, logits_RV: torch.Tensor) -> list[Drawn]:
    """Records a batch that has run, and draws tokens for requests that reached the end of their log, and for their siblings.

    Args:
        scheduler: scheduler of the batch.
        batch: batch as it ran.
        logits_RV: [R, V], a row for each position that a token may follow.
    """
    rows: list[int] = []
    states: list[RequestState] = []
    positions: list[int] = []
    drafts: list[tuple[RequestState, tuple[int, ...]]] = []
    row = 0
    for chunk in batch.chunks:
        drawing, count = scheduler.computed(chunk), 1 + len(chunk.draft)
        for state in drawing:
            rows += range(row, row + count)
            states += [state] * count
            positions += range(len(state.token_ids), len(state.token_ids) + count)
            drafts.append((state, chunk.draft))
        row += count if drawing else 0
    if not drafts:
        return []
    token_ids, logprobs = map(iter, sample_tokens(logits_RV, rows, states, positions))
    return [
        Drawn(
            state,
            draft,
            tuple(islice(token_ids, 1 + len(draft))),
            tuple(islice(logprobs, 1 + len(draft))),
        )
        for state, draft in drafts
    ]


def keep(
    scheduler: Scheduler,
    drawn: Drawn,
    *,
    policy_version: int,
    finish_reason: Callable[[RequestState, int], FinishReason | None],
) -> FinishReason | None:
    """Appends drawn tokens to the log, up to the first that differs from the draft: later ones followed another token.

    Args:
        scheduler: takes back the blocks of tokens that are not kept.
        drawn: for one request.
        policy_version: version of the weights that ran.
        finish_reason: returns why a request ends with a token, or None if it goes on.

    Returns:
        Why the request ended, or None. Tokens after its end are not kept.
    """
    state, draft = drawn.state, drawn.draft
    reason, num_accepted = None, 0
    draws = zip(drawn.token_ids, drawn.logprobs, strict=True)
    for num_accepted, (token_id, logprob) in enumerate(draws):
        state.token_ids.append(token_id)
        state.logprobs.append(logprob)
        state.policy_versions.append(policy_version)
        reason = finish_reason(state, token_id)
        is_right = num_accepted < len(draft) and token_id == draft[num_accepted]
        if reason is not None or not is_right:
            break
    scheduler.accept(state, num_accepted)
    return reason
