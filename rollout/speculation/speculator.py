"""Speculation of one engine: who drafts what, what it is worth, and what came of it. No torch.

Each step: would even the best draft pay? If so, or every so often to learn, drafts are asked for; their tokens go to
the requests where they raise the expected tokens per second (`allocation`). Outputs never depend on any of it: every
position is sampled with its own keyed uniform, and a draft only says which positions are computed together.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rollout.core import RequestState, StepBatch
from rollout.speculation.acceptance import Acceptance
from rollout.speculation.allocation import Decoding, allocate, survival
from rollout.speculation.break_even import LEAST_GAIN, best_reach, can_pay
from rollout.speculation.cost_table import CostTable, StepSize, step_size
from rollout.speculation.drafters.drafter import NO_ROOM, Draft, Drafter
from rollout.speculation.proposal import Proposal, tested_part
from rollout.stats import SpeculationStats

__all__ = ["Speculator"]

_LEARN_EVERY = 8  # steps that would not draft: compare drafts with what is sampled all the same
_LEARN_REQUESTS = 4  # that a costly drafter is compared on
_SAMPLED_REQUESTS = 16  # that any drafter is asked for, where the last drafts did not pay
_ACCEPTANCE = "acceptance"
_CONTROL_EVERY = 64  # steps that would draft: run one without, to know what drafts gain


@dataclass(frozen=True, slots=True)
class _Plan:
    proposals: Mapping[RequestState, Proposal]
    """Also where none of it is verified."""
    lengths: Mapping[RequestState, int]
    is_control: bool


_NO_PLAN = _Plan({}, {}, is_control=False)


class Speculator:
    """Drafts for the decoding requests of each step, and what is learned from the outcome.

    Args:
        drafters: sources of drafts; for each request the draft of most worth is taken.
        costs: costs of a step.
        max_draft_tokens: most draft tokens of a request in a step.
        eos_token_ids: end-of-sequence ids of the model. A draft token that ends its request is not verified: the token before it
            gives a row to draw it from, and no token after it is kept.
    """

    def __init__(
        self,
        drafters: Sequence[Drafter],
        costs: CostTable,
        *,
        max_draft_tokens: int,
        eos_token_ids: Sequence[int] = (),
    ) -> None:
        self.drafters = list(drafters)
        self.stats = SpeculationStats()
        self._costs = costs
        self._max_draft_tokens = max_draft_tokens
        self._eos_token_ids = eos_token_ids
        self._acceptance = [Acceptance() for _ in self.drafters]
        self._num_idle = 0  # steps since drafts were last asked for
        self._pause = 1  # steps before they are asked for again: longer, while none of them pays
        self._num_sampled = 0
        self._num_drafting = 0
        self._num_unasked = [0] * len(self.drafters)  # steps since each was asked
        self._plan = _NO_PLAN
        self._start = 0.0
        self._begin = 0.0
        self._size: StepSize | None = None  # of the step that runs, if it only decodes

    @property
    def costs(self) -> CostTable:
        """Costs of a step, as measured so far."""
        return self._costs

    def plan(
        self, batch: StepBatch, max_lengths: Mapping[RequestState, int]
    ) -> Mapping[RequestState, Sequence[int]]:
        """Draft tokens for requests of a batch that is about to run.

        Args:
            batch: batch without drafts.
            max_lengths: requests that may have a draft, and how many tokens each can still use.
        """
        self._start = time.perf_counter()
        self._plan = self._make_plan(batch, max_lengths)
        self.stats.draft_seconds += time.perf_counter() - self._start
        plan = self._plan
        if plan.is_control:
            return {}
        return {
            state: plan.proposals[state].draft.token_ids[:length]
            for state, length in plan.lengths.items()
            if length
        }

    def begin(self, batch: StepBatch) -> None:
        """The batch, with what it took of the drafts, is about to run."""
        only_decodes = all(chunk.samples and chunk.num_tokens == 1 for chunk in batch.chunks)
        self._size = step_size(batch.chunks) if only_decodes else None
        self._begin = time.perf_counter()

    def observe(self, batch: StepBatch, sampled: Mapping[RequestState, Sequence[int]]) -> None:
        """Learns from the tokens that each request kept in a step.

        Args:
            batch: batch as it ran.
            sampled: tokens that each request kept, at least one.
        """
        now = time.perf_counter()
        seconds = now - self._start
        for state, proposal in self._plan.proposals.items():
            self._acceptance[proposal.source].observe(
                state.request.request_id, *tested_part(proposal.draft, sampled[state])
            )
        num_tokens = sum(map(len, sampled.values()))
        plan, self._plan = self._plan, _NO_PLAN
        has_drafts, expected_tokens = False, float(len(batch.chunks))
        for chunk in batch.chunks:
            if chunk.draft:
                has_drafts = True
                self.stats.count(len(chunk.draft), len(sampled[chunk.state]) - 1)
                chances = survival(plan.proposals[chunk.state].probabilities)
                expected_tokens += sum(chances[: len(chunk.draft)])
        if has_drafts and self._size is not None:
            self.stats.compared_tokens += num_tokens
            self.stats.expected_tokens += expected_tokens
            self.stats.compared_seconds += now - self._begin
            self.stats.expected_seconds += self._costs.seconds(self._size)
        if has_drafts:
            self.stats.drafted_tokens += num_tokens
            self.stats.drafted_seconds += seconds
        elif plan.is_control:
            self.stats.control_tokens += num_tokens
            self.stats.control_seconds += seconds
        if self._size is not None:
            self._costs.refresh(self._size, now - self._begin)  # drafting has costs of its own

    def finish(self, state: RequestState, *, policy_version: int) -> None:
        """Notes that a request has ended; its tokens become history."""
        for drafter, acceptance in zip(self.drafters, self._acceptance, strict=True):
            drafter.finish(state, policy_version=policy_version)
            acceptance.forget(state.request.request_id)

    def check_integrity(self) -> None:
        """Recounts the state that drafters keep.

        Raises:
            RuntimeError: the books do not agree.
        """
        for drafter in self.drafters:
            drafter.check_integrity()

    def take_stats(self) -> SpeculationStats:
        """Returns the counts since the last call."""
        stats, self.stats = self.stats, SpeculationStats()
        return stats

    def state_dict(self) -> dict[str, Any]:
        """Returns what drafters keep from run to run, by their class, and how likely their tokens are to be kept."""
        return {
            type(drafter).__name__: {**drafter.state_dict(), _ACCEPTANCE: acceptance.state_dict()}
            for drafter, acceptance in zip(self.drafters, self._acceptance, strict=True)
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Load the state of drafters of the same classes; drafters that `saved` lacks start empty."""
        for drafter, acceptance in zip(self.drafters, self._acceptance, strict=True):
            own = saved.get(type(drafter).__name__)
            if own is not None:
                drafter.load_state_dict(own)
                acceptance.load_state_dict(own.get(_ACCEPTANCE, ()))

    def _make_plan(self, batch: StepBatch, max_lengths: Mapping[RequestState, int]) -> _Plan:
        if not max_lengths:
            return _NO_PLAN
        decoding = self._decoding(batch)
        may_pay = can_pay(
            decoding,
            max_lengths,
            rate=max(acceptance.greatest() for acceptance in self._acceptance),
            most_tokens=self._most_tokens(max_lengths),
        )
        self._num_idle += 1
        self._num_unasked = [count + 1 for count in self._num_unasked]
        if self._num_idle < (self._pause if may_pay else _LEARN_EVERY):
            return _NO_PLAN
        self._num_idle = 0
        if self._pause > 1 or not may_pay:
            max_lengths = self._sample(max_lengths)
        proposals = self._propose(max_lengths, decoding)
        lengths = [0] * len(proposals)
        if may_pay:
            lengths = allocate(
                [proposal.probabilities for proposal in proposals.values()],
                [len(state.token_ids) for state in proposals],
                decoding=decoding,
                least_gain=LEAST_GAIN,
            )
        is_drafting = any(lengths)
        self._pause = 1 if is_drafting else min(2 * self._pause, _LEARN_EVERY)
        self._num_drafting += is_drafting
        is_control = is_drafting and self._num_drafting % _CONTROL_EVERY == 0
        return _Plan(proposals, dict(zip(proposals, lengths, strict=True)), is_control)

    def _decoding(self, batch: StepBatch) -> Decoding:
        size = step_size(batch.chunks)
        chunks = [chunk for chunk in batch.chunks if chunk.samples and chunk.num_tokens == 1]
        sunk = 0.0
        if len(chunks) < len(batch.chunks):
            sunk = self._costs.seconds(size) - self._costs.seconds(step_size(chunks))
        return Decoding(costs=self._costs, size=size, num_tokens=len(chunks), sunk_seconds=sunk)

    def _sample(self, max_lengths: Mapping[RequestState, int]) -> Mapping[RequestState, int]:
        """A few requests, neighbours since these are siblings, others each time: enough to see whether drafts pay again."""
        start = self._num_sampled % len(max_lengths)
        self._num_sampled += _SAMPLED_REQUESTS
        states = [*max_lengths][start : start + _SAMPLED_REQUESTS]
        return {state: max_lengths[state] for state in states}

    def _propose(
        self, max_lengths: Mapping[RequestState, int], decoding: Decoding
    ) -> dict[RequestState, Proposal]:
        """Returns, for each request, the draft of which most tokens are expected to be kept."""
        best: dict[RequestState, Proposal] = {}
        for source, drafter in enumerate(self.drafters):
            states, max_tokens = self._whom_to_ask(source, max_lengths, decoding)
            if not states:
                continue
            drafts = drafter.propose(states, max_tokens=max_tokens)
            for state, draft in zip(states, drafts, strict=True):
                self.stats.num_without_room += draft is NO_ROOM
                request_id = state.request.request_id
                probabilities = self._acceptance[source].probabilities(request_id, draft)
                limit = min(max_lengths[state], self._num_before_end(state, draft))
                proposal = Proposal(draft, source, probabilities[:limit])
                if state not in best or proposal.worth > best[state].worth:
                    best[state] = proposal
        return best

    def _num_before_end(self, state: RequestState, draft: Draft) -> int:
        """Counts the tokens of a draft before the first that would end the request."""
        ends_at = partial(state.request.params.ends_at, eos_token_ids=self._eos_token_ids)
        ends = (i for i, token_id in enumerate(draft.token_ids) if ends_at(token_id))
        return next(ends, len(draft.token_ids))

    def _whom_to_ask(
        self, source: int, max_lengths: Mapping[RequestState, int], decoding: Decoding
    ) -> tuple[list[RequestState], int]:
        """Chooses the requests to ask a drafter for, and how many tokens for each.

        A drafter that costs nothing is asked for everything. Another one must also earn the time of drafting; where it cannot,
        it is asked for a few requests every so often, to learn.
        """
        states, drafter = list(max_lengths), self.drafters[source]
        if drafter.seconds(states, max_tokens=1) == 0:
            return states, self._max_draft_tokens
        count, length = best_reach(
            drafter,
            states,
            decoding,
            rate=self._acceptance[source].mean(),
            most_tokens=self._most_tokens(max_lengths),
        )
        if not count:
            if self._num_unasked[source] < _LEARN_EVERY:
                return [], 0
            count, length = _LEARN_REQUESTS, 1
        self._num_unasked[source] = 0
        return states[:count], length

    def _most_tokens(self, max_lengths: Mapping[RequestState, int]) -> int:
        """Returns the length of the longest draft that any of the requests can use."""
        return min(self._max_draft_tokens, max(max_lengths.values()))
