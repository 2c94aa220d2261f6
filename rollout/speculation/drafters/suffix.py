"""Drafts from the request itself, its siblings in flight, and past rollouts of the same prompt.

After suffix decoding (https://arxiv.org/abs/2411.04975), with one automaton per prompt as in DAS
(https://arxiv.org/abs/2511.13841): what other prompts say lowers acceptance. Departures: an automaton instead of
a tree, so that the longest match is found by following links instead of walking from the root for each length; how far to
go is the controller's to say; and a draft is not the chain of the most frequent tokens but of those that the request's own
uniforms should draw, as past draws of the same context tell (`SuffixAutomaton.likeliest`). It is a coupling without
communication (Daliri et al., "Coupling without Communication and Drafter-Invariant Speculative Decoding"), of a sample instead of
a model: at temperature 1 the most frequent token is right no more often than it is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rollout.core import RequestState
from rollout.speculation.drafters.drafter import NO_DRAFT, Draft, Drafter
from rollout.speculation.drafters.history import History, PastRollout
from rollout.speculation.drafters.suffix_automaton import ROOT, SuffixAutomaton
from rollout.speculation.drafters.uniforms import Uniforms, look_ahead

__all__ = ["SuffixDrafter"]

_MIN_CONFIDENCE = 0.1  # a chain ends before a token less sure than this


class SuffixDrafter(Drafter):
    """Keeps an automaton per prompt while requests of the prompt live, and makes it again from the history.

    Tokens are added when a draft is asked for, so that an engine that never speculates pays nothing.

    Args:
        history_tokens: most tokens of past rollouts to keep.
    """

    def __init__(self, *, history_tokens: int) -> None:
        self._history = History(max_tokens=history_tokens)
        self._trees: dict[tuple[int, ...], _PromptTree] = {}

    def propose(self, states: Sequence[RequestState], *, max_tokens: int) -> list[Draft]:
        self._catch_up(states, num_ahead=max_tokens)
        return [self._tree(state).propose(state, max_tokens) for state in states]

    def finish(self, state: RequestState, *, policy_version: int) -> None:
        prompt = _prompt_of(state)
        output_ids = state.output_ids
        if output_ids:
            self._history.add(state.request, output_ids, policy_version)
        tree = self._trees.get(prompt)
        if tree is not None:
            self._catch_up([state], num_ahead=0)
            tree.leave(state)
            if not tree.ends:
                del self._trees[prompt]

    def state_dict(self) -> dict[str, Any]:
        return self._history.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self._history.load_state_dict(saved)

    def _catch_up(self, states: Sequence[RequestState], *, num_ahead: int) -> None:
        """Takes in new tokens of the requests' logs, and computes the uniforms of the next so many tokens."""
        look_ahead(
            [self._tree(state).end_of(state).uniforms for state in states],
            ends=[len(state.token_ids) + num_ahead for state in states],
        )
        for state in states:
            self._tree(state).catch_up(state)

    def _tree(self, state: RequestState) -> "_PromptTree":
        prompt = _prompt_of(state)
        tree = self._trees.get(prompt)
        if tree is None:
            tree = self._trees[prompt] = _PromptTree.of(prompt, self._history)
        return tree


@dataclass(slots=True)
class _End:
    """State of the automaton at which a request in flight ends."""

    state: int
    num_seen: int
    """Tokens of its log that led there."""
    uniforms: Uniforms


@dataclass(slots=True)
class _PromptTree:
    """The automaton of one prompt, and where in it each request in flight ends."""

    automaton: SuffixAutomaton
    prompt_state: int
    ends: dict[str, _End] = field(default_factory=dict)
    """Cursors by request."""

    @classmethod
    def of(cls, prompt: tuple[int, ...], history: History) -> "_PromptTree":
        automaton = SuffixAutomaton()
        start = ROOT
        for token_id in prompt:
            start = automaton.append(start, token_id)
        tree = cls(automaton, start)
        tree._remember(history.of(prompt), first=len(prompt))
        return tree

    def end_of(self, state: RequestState) -> _End:
        request_id = state.request.request_id
        if request_id not in self.ends:
            first = state.num_prompt_tokens
            uniforms = Uniforms(state.request.drawn_with, first=first)
            self.ends[request_id] = _End(self.prompt_state, first, uniforms)
        return self.ends[request_id]

    def catch_up(self, state: RequestState) -> None:
        """Take in what its log has got since the last time; its uniforms are known."""
        end = self.end_of(state)
        new = state.token_ids[end.num_seen :]
        end.state = self._extend(end.state, new, first=end.num_seen, uniforms=end.uniforms)
        end.num_seen += len(new)

    def propose(self, state: RequestState, max_tokens: int) -> Draft:
        automaton, end = self.automaton, self.end_of(state)
        at = automaton.longest_repeated(end.state)
        match_length = automaton.match_length(at)
        token_ids: list[int] = []
        confidences: list[float] = []
        while match_length and len(token_ids) < max_tokens:
            at = automaton.longest_repeated(at)
            if at == ROOT:
                break
            uniform = end.uniforms.at(end.num_seen + len(token_ids))
            token_id, confidence = automaton.likeliest(at, uniform)
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

    def _remember(self, rollouts: Sequence[PastRollout], *, first: int) -> None:
        drawn = [Uniforms(rollout.key, first=first) for rollout in rollouts]
        look_ahead(drawn, ends=[first + len(rollout.token_ids) for rollout in rollouts])
        for rollout, uniforms in zip(rollouts, drawn, strict=True):
            self._extend(self.prompt_state, rollout.token_ids, first=first, uniforms=uniforms)

    def _extend(self, at: int, token_ids: Sequence[int], *, first: int, uniforms: Uniforms) -> int:
        """Returns the state after tokens that follow `at`; the first of them is at `first` in its log."""
        for position, token_id in enumerate(token_ids, first):
            at = self.automaton.append(at, token_id, uniform=uniforms.at(position))
        return at


def _prompt_of(state: RequestState) -> tuple[int, ...]:
    return state.request.token_ids
