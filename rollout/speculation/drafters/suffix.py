"""Drafts from the request itself, its siblings in flight, and past rollouts of the same prompt. No torch.

After suffix decoding (https://arxiv.org/abs/2411.04975), with one automaton per prompt as in DAS
(https://arxiv.org/abs/2511.13841): what other prompts say lowers acceptance. Departures: an automaton instead of
a tree, so that the longest match is found by following links instead of walking from the root for each length; drafts
are chains of the most frequent token; how far to go is the controller's to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rollout.engine.core import RequestState
from rollout.speculation.drafters.drafter import NO_DRAFT, Draft, Drafter
from rollout.speculation.drafters.history import History
from rollout.speculation.drafters.suffix_automaton import ROOT, SuffixAutomaton

__all__ = ["SuffixDrafter"]

_MIN_CONFIDENCE = 0.1  # a chain ends before a token less frequent than this


class SuffixDrafter(Drafter):
    """Automata live while requests of their prompt do, and are made anew from the history.

    Tokens are added when a draft is asked for, so that an engine that never speculates pays nothing.

    Args:
        history_tokens: of past rollouts, at most.
    """

    def __init__(self, *, history_tokens: int) -> None:
        self._history = History(max_tokens=history_tokens)
        self._trees: dict[tuple[int, ...], _PromptTree] = {}

    def propose(self, states: Sequence[RequestState], *, max_tokens: int) -> list[Draft]:
        for state in states:
            self._tree(state).catch_up(state)
        return [self._tree(state).propose(state, max_tokens) for state in states]

    def finish(self, state: RequestState, *, policy_version: int) -> None:
        prompt = _prompt_of(state)
        output_ids = state.output_ids
        if output_ids:
            self._history.add(prompt, output_ids, policy_version)
        tree = self._trees.get(prompt)
        if tree is not None:
            tree.catch_up(state)
            tree.leave(state)
            if not tree.ends:
                del self._trees[prompt]

    def state_dict(self) -> dict[str, Any]:
        return self._history.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self._history.load_state_dict(saved)

    def _tree(self, state: RequestState) -> "_PromptTree":
        prompt = _prompt_of(state)
        tree = self._trees.get(prompt)
        if tree is None:
            tree = self._trees[prompt] = _PromptTree.of(prompt, self._history)
        return tree


@dataclass(slots=True)
class _PromptTree:
    """The automaton of one prompt, and where in it each request in flight ends."""

    automaton: SuffixAutomaton
    prompt_state: int
    ends: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By request: state, and how many tokens of its log led there."""

    @classmethod
    def of(cls, prompt: tuple[int, ...], history: History) -> "_PromptTree":
        automaton = SuffixAutomaton()
        start = _extend(automaton, ROOT, prompt)
        for rollout in history.of(prompt):
            _extend(automaton, start, rollout.token_ids)
        return cls(automaton, start)

    def catch_up(self, state: RequestState) -> None:
        request_id = state.request.request_id
        end, num_seen = self.ends.get(request_id, (self.prompt_state, state.num_prompt_tokens))
        new = state.token_ids[num_seen:]
        self.ends[request_id] = (_extend(self.automaton, end, new), num_seen + len(new))

    def propose(self, state: RequestState, max_tokens: int) -> Draft:
        automaton = self.automaton
        at = automaton.longest_repeated(self.ends[state.request.request_id][0])
        match_length = automaton.match_length(at)
        token_ids: list[int] = []
        confidences: list[float] = []
        while match_length and len(token_ids) < max_tokens:
            at = automaton.longest_repeated(at)
            if at == ROOT:
                break
            token_id, confidence = automaton.most_frequent(at)
            if confidence < _MIN_CONFIDENCE:
                break
            token_ids.append(token_id)
            confidences.append(confidence)
            at = automaton.follow(at, token_id)
        if not token_ids:
            return NO_DRAFT
        return Draft(tuple(token_ids), tuple(confidences), match_length)

    def leave(self, state: RequestState) -> None:
        del self.ends[state.request.request_id]


def _extend(automaton: SuffixAutomaton, state: int, token_ids: Sequence[int]) -> int:
    for token_id in token_ids:
        state = automaton.append(state, token_id)
    return state


def _prompt_of(state: RequestState) -> tuple[int, ...]:
    return state.request.token_ids
