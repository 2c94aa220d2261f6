"""Drafts by a smaller model of the same tokenizer, which follows the accepted tokens in a paged cache of its own.

The small model draws from its own distribution, under the request's sampling parameters, with the very uniform that
verification will use at that position: a coupling (Daliri et al., "Coupling without Communication and Drafter-
Invariant Speculative Decoding"; theirs is of Gumbel noise, ours of the keyed inverse CDF). Above temperature 0 two draws from
like distributions with one uniform as a rule agree more often than a draw and an argmax do, and no distribution need be kept.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from rollout.core import Chunk, RequestState, Status, StepBatch
from rollout.engine.block_manager import BlockManager
from rollout.engine.runner import Runner, bytes_per_block
from rollout.engine.sampler import sample_tokens
from rollout.models.decoder import Decoder
from rollout.speculation.cost_table import CostTable, StepSize, step_size
from rollout.speculation.drafters.drafter import NO_DRAFT, NO_ROOM, Draft, Drafter
from rollout.speculation.drafters.follower import Chain, Follower
from rollout.speculation.measure_costs import measure_costs

__all__ = ["ModelDrafter"]

_CATCH_UP_TOKENS = 256  # of prompts in one call: a long one is taken in over several
_VERSION = (
    0  # the draft model's weights never change, so neither does what its prefix cache may find
)


class ModelDrafter(Drafter):
    """All requests asked for are drafted together: one forward per position.

    A request is followed from the first time a draft of it is asked for until it ends or is preempted. When blocks run
    out, requests that were not asked for give theirs up; what still has no room gets `NO_ROOM`. Weight updates of the
    policy do not reach the draft model: its acceptance drifts, which the controller sees.

    Args:
        decoder: draft model, of the same vocabulary as the engine's model.
        kv_cache_gb: memory of its cache, in GB (10^9 bytes).
        block_size: tokens of a block.
        max_context: most tokens of a request that gets drafts; the limit of the draft model applies, too.

    Raises:
        ValueError: not even one block fits.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        kv_cache_gb: float,
        block_size: int,
        max_context: int,
        costs: CostTable | None = None,
    ) -> None:
        weight, spec = decoder.embed_tokens, decoder.spec
        block_bytes = bytes_per_block(spec, block_size=block_size, dtype=weight.dtype)
        num_blocks = int(kv_cache_gb * 1e9 // block_bytes)
        if num_blocks == 0:
            raise ValueError(
                "engine.speculation.kv_cache_gb must hold at least one block of the draft model, of "
                f"{block_bytes / 1e9:.4f} GB, got {kv_cache_gb}"
            )
        self._decoder = decoder
        self._kv_cache_gb = kv_cache_gb
        self._max_context = min(max_context, spec.max_positions)
        self._blocks = BlockManager(num_blocks=num_blocks, block_size=block_size, prefix_cache=True)
        self._runner = Runner(
            spec,
            num_blocks=num_blocks,
            block_size=block_size,
            dtype=weight.dtype,
            device=weight.device,
        )
        self._weights = self._runner.packed(decoder)
        self._followers: dict[RequestState, Follower] = {}
        self._costs = costs or measure_costs(
            self._runner,
            self._weights,
            self._blocks,
            max_rows=_CATCH_UP_TOKENS,
            max_context=self._max_context,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "ModelDrafter":
        """Returns a copy that shares weights and costs, with an empty cache."""
        return ModelDrafter(
            self._decoder,
            kv_cache_gb=self._kv_cache_gb,
            block_size=self._blocks.block_size,
            max_context=self._max_context,
            costs=self._costs,
        )

    def propose(self, states: Sequence[RequestState], *, max_tokens: int) -> list[Draft]:
        self._let_go(s for s in self._followers if s.status is not Status.RUNNING)
        drafts: dict[RequestState, Draft] = {}
        followers = [self._follow(state) for state in states if self._can_follow(state)]
        chunks = self._first_chunks(followers, drafts)
        chains = {chunk.state: Chain() for chunk in chunks}
        for _ in range(max_tokens):
            if not chunks:
                break
            chunks = self._draw(chunks, chains)
        for follower in followers:
            if follower.own in chains:
                drafts[follower.state] = chains[follower.own].draft()
        return [drafts.get(state, NO_DRAFT) for state in states]

    def seconds(self, states: Sequence[RequestState], *, max_tokens: int) -> float:
        """Returns the expected seconds of drafting, and of the tokens accepted since the last time.

        What a request had when it was first asked for is not in it: that is taken in once, for all of its drafts.
        """
        behind = [self._num_behind(state) for state in states]
        lengths = [len(state.token_ids) for state in states]
        keys, rows = sum(lengths), len(states)
        row_keys = sum((b - 1) * length for b, length in zip(behind, lengths, strict=True))
        first = self._costs.seconds(StepSize(sum(behind), keys, row_keys))
        return first + (max_tokens - 1) * self._costs.seconds(StepSize(rows, keys, 0))

    def finish(self, state: RequestState, *, policy_version: int) -> None:
        if state in self._followers:
            self._let_go([state])

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        pass

    def check_integrity(self) -> None:
        """Recount its blocks and whom they belong to.

        Raises:
            RuntimeError: a block is leaked or held twice, or held by a request that has ended.
        """
        self._blocks.check_integrity(f.own.block_table for f in self._followers.values())
        ended = [s.request.request_id for s in self._followers if s.status is Status.FINISHED]
        if ended:
            raise RuntimeError(f"the draft model still holds blocks of {ended[0]}, which has ended")

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no request holds."""
        return self._blocks.num_available

    @property
    def num_blocks(self) -> int:
        return self._blocks.num_blocks

    def _num_behind(self, state: RequestState) -> int:
        follower = self._followers.get(state)
        if follower is None or follower.own.num_computed < follower.num_known - 1:
            return 1
        return follower.num_behind

    def _can_follow(self, state: RequestState) -> bool:
        return len(state.token_ids) <= self._max_context

    def _follow(self, state: RequestState) -> Follower:
        follower = self._followers.setdefault(state, Follower.of(state))
        follower.catch_up()
        self._blocks.shrink(follower.own.block_table, num_tokens=follower.own.num_computed)
        return follower

    def _first_chunks(
        self, followers: Sequence[Follower], drafts: dict[RequestState, Draft]
    ) -> list[Chunk]:
        """Returns what to compute before the first draws, within the budget, the most advanced requests first.

        A sibling waits while another one computes their prompt, and then finds it in the prefix cache.
        """
        budget = _CATCH_UP_TOKENS + len(followers)
        asked = {follower.own for follower in followers}
        starting: set[tuple[int, ...]] = set()
        chunks: list[Chunk] = []
        for follower in sorted(followers, key=lambda f: -f.own.num_computed):
            own = follower.own
            if own.num_computed == 0:
                own.block_table = self._blocks.match_prefix(own.token_ids, policy_version=_VERSION)
                own.num_computed = len(own.block_table) * self._blocks.block_size
            is_starting = own.num_prompt_tokens - own.num_computed > self._blocks.block_size
            prompt = own.request.token_ids
            if is_starting and prompt in starting:
                continue
            if is_starting:
                starting.add(prompt)
            num_tokens = min(own.num_remaining, budget)
            if num_tokens == 0:
                continue
            if not self._make_room(own, num_tokens, asked):
                drafts[follower.state] = NO_ROOM
                continue
            chunks.append(Chunk(own, num_tokens))
            budget -= num_tokens
        return chunks

    def _make_room(self, own: RequestState, num_tokens: int, asked: set[RequestState]) -> bool:
        end = own.num_computed + num_tokens
        missing = self._blocks.num_missing(
            own.block_table, num_computed=own.num_computed, num_tokens=end
        )
        if missing > self._blocks.num_available:
            self._let_go(s for s, f in self._followers.items() if f.own not in asked)
        if missing > self._blocks.num_available:
            return False
        copy = self._blocks.grow(own.block_table, num_computed=own.num_computed, num_tokens=end)
        assert copy is None, "only whole blocks are shared"
        return True

    def _draw(self, chunks: Sequence[Chunk], chains: Mapping[RequestState, Chain]) -> list[Chunk]:
        """Run the chunks and add a token to each chain whose log's end was reached; returns what goes on."""
        start = time.perf_counter()
        size = step_size(chunks)
        logits_RV = self._runner.run(self._weights, StepBatch(tuple(chunks), ()))
        drawing = [chunk.state for chunk in chunks if chunk.samples]
        token_ids, logprobs = self._sample(logits_RV, drawing)
        for chunk in chunks:
            self._book(chunk)
        if all(chunk.num_tokens == 1 for chunk in chunks):
            self._costs.refresh(size, time.perf_counter() - start)
        following: list[Chunk] = []
        asked = set(chains)
        for own, token_id, logprob in zip(drawing, token_ids, logprobs, strict=True):
            own.token_ids.append(token_id)
            chains[own].token_ids.append(token_id)
            chains[own].confidences.append(min(math.exp(logprob), 1.0))
            has_ended = self._ends(own, token_id) or len(own.token_ids) > self._max_context
            if not has_ended and self._make_room(own, 1, asked):
                following.append(Chunk(own, 1))
        return following

    def _sample(
        self, logits_RV: torch.Tensor, drawing: Sequence[RequestState]
    ) -> tuple[list[int], list[float]]:
        if not drawing:
            return [], []
        positions = [len(own.token_ids) for own in drawing]
        return sample_tokens(logits_RV, range(len(drawing)), drawing, positions)

    def _book(self, chunk: Chunk) -> None:
        own = chunk.state
        was_in_prompt = own.num_computed < own.num_prompt_tokens
        own.num_computed += chunk.num_tokens
        if was_in_prompt:
            num_tokens = min(own.num_computed, own.num_prompt_tokens)
            self._blocks.remember(
                own.block_table, own.token_ids, num_tokens, policy_version=_VERSION
            )

    def _ends(self, own: RequestState, token_id: int) -> bool:
        eos_token_ids = self._decoder.spec.eos_token_ids
        return own.request.params.ends_at(token_id, eos_token_ids=eos_token_ids)

    def _let_go(self, states: Iterator[RequestState] | Sequence[RequestState]) -> None:
        for state in list(states):
            self._blocks.release(self._followers.pop(state).own.block_table)
