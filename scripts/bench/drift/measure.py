"""Acceptance against policy drift: drafts from rollouts of one version of a policy, for what a later one samples.

Nothing is sped up here. Both versions answer the same prompts; the answers of the later one are gone through as verification
would, with the earlier one's as history, and both models say how likely they are. So the curve depends on no machine's costs.

Shape legend: N = tokens of a completion, V = vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rollout.core import Chunk, Request, RequestState, SampleKey, SamplingParams, StepBatch
from rollout.engine.block_manager import BlockManager
from rollout.engine.runner import Runner
from rollout.models.decoder import Decoder
from rollout.speculation.drafters.history import PastRollout
from rollout.speculation.drafters.suffix import SuffixDrafter

__all__ = ["Answers", "Scorer", "Version", "kl_per_token", "measure_drift", "replay"]

_BLOCK_SIZE = 64
_HISTORY_TOKENS = 1 << 40  # all of it

Answers = Mapping[tuple[int, ...], Sequence[PastRollout]]
"""Past rollouts, by the token ids of their prompt."""


@dataclass(frozen=True, slots=True)
class Version:
    """A policy, and two epochs of its answers to the same prompts, grouped by prompt."""

    number: int
    score: "Scorer"
    history: Answers
    answers: Answers


class Scorer:
    """Log-probabilities of whole completions, in one forward each.

    Args:
        decoder: the policy.
        max_tokens: limit on a prompt and its completion together.
        temperature: above 0; that of the distribution asked for.
    """

    def __init__(self, decoder: Decoder, *, max_tokens: int, temperature: float) -> None:
        weight = decoder.embed_tokens
        num_blocks = -(-max_tokens // _BLOCK_SIZE)
        self._temperature = temperature
        self._blocks = BlockManager(
            num_blocks=num_blocks, block_size=_BLOCK_SIZE, prefix_cache=False
        )
        self._runner = Runner(
            decoder.spec,
            num_blocks=num_blocks,
            block_size=_BLOCK_SIZE,
            dtype=weight.dtype,
            device=weight.device,
        )
        self._weights = self._runner.packed(decoder)

    def __call__(self, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
        """Returns the log-probability of every token before each token of the completion: [N, V] float32."""
        state = _state(prompt, None)
        chunk = Chunk(state, len(prompt), draft=tuple(completion[:-1]))
        self._blocks.grow(state.block_table, num_computed=0, num_tokens=chunk.num_rows)
        try:
            logits_NV = self._runner.run(self._weights, StepBatch((chunk,), ()))
        finally:
            self._blocks.release(state.block_table)
        return (logits_NV.float() / self._temperature).log_softmax(-1)


def measure_drift(
    versions: Sequence[Version], *, max_draft_tokens: int, progress: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    """Yield one result per pair of versions; the earlier version, or the same one, wrote the history.

    Args:
        versions: policies in the order of training.
        max_draft_tokens: limit on one draft.
        progress: called after each pair.
    """
    for i, decoding in enumerate(versions):
        for writing in versions[: i + 1]:
            num_tested, num_accepted, num_steps = replay(
                writing.history, decoding.answers, max_draft_tokens=max_draft_tokens
            )
            num_tokens = _num_tokens(decoding.answers)
            yield {
                "history_version": writing.number,
                "decoding_version": decoding.number,
                "kl_per_token": kl_per_token(decoding, writing) if writing is not decoding else 0.0,
                "accepted_share": num_accepted / num_tested if num_tested else 0.0,
                "tested_tokens": num_tested,
                "accepted_tokens": num_accepted,
                "tokens_per_step": num_tokens / num_steps,
                "num_tokens": num_tokens,
            }
            progress()


def kl_per_token(decoding: Version, writing: Version) -> float:
    """KL(decoding || writing) in nats, over the whole vocabulary, mean over the tokens that `decoding` sampled."""
    total = 0.0
    for prompt, siblings in decoding.answers.items():
        for completion in (answer.token_ids for answer in siblings if answer.token_ids):
            logprobs_NV = decoding.score(prompt, completion)
            difference_NV = logprobs_NV - writing.score(prompt, completion)
            total += (logprobs_NV.exp() * difference_NV).sum(dtype=torch.float64).item()
    return total / _num_tokens(decoding.answers)


def replay(
    history: Answers,
    answers: Answers,
    *,
    max_draft_tokens: int,
) -> tuple[int, int, int]:
    """Count tested draft tokens, accepted ones and steps, as if every draft of the suffix drafter were verified.

    Tokens after the first wrong one of a draft are not tested, so the length of drafts does not matter. Each answer knows the history of its prompt and its own tokens, but no siblings.
    """
    num_tested = num_accepted = num_steps = 0
    for prompt, siblings in answers.items():
        for answer in siblings:
            drafter = SuffixDrafter(history_tokens=_HISTORY_TOKENS)
            for past in history[prompt]:
                drafter.finish(_answered(prompt, past), policy_version=past.policy_version)
            state = _state(prompt, answer.key)
            while state.num_output < len(answer.token_ids):
                rest = answer.token_ids[state.num_output :]
                (draft,) = drafter.propose([state], max_tokens=max_draft_tokens)
                drafted = draft.token_ids[: len(rest) - 1]  # one is drawn in any case
                right = _num_equal(drafted, rest)
                state.token_ids += rest[: right + 1]
                num_tested += right + (right < len(drafted))
                num_accepted += right
                num_steps += 1
    return num_tested, num_accepted, num_steps


def _num_equal(drafted: Sequence[int], tokens: Sequence[int]) -> int:
    for i, token_id in enumerate(drafted):
        if token_id != tokens[i]:
            return i
    return len(drafted)


def _num_tokens(answers: Answers) -> int:
    return sum(len(answer.token_ids) for siblings in answers.values() for answer in siblings)


def _state(prompt: Sequence[int], key: SampleKey | None) -> RequestState:
    """Return the state of a greedy request, which needs no sample key."""
    return RequestState.of(
        Request(
            request_id="replayed",
            token_ids=tuple(prompt),
            params=SamplingParams(temperature=1.0 if key else 0.0),
            key=key or SampleKey(0, 0, 0),
        )
    )


def _answered(prompt: Sequence[int], answer: PastRollout) -> RequestState:
    state = _state(prompt, answer.key)
    state.token_ids += answer.token_ids
    return state
