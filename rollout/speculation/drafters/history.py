"""Past rollouts by prompt, oldest out. No torch."""

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from rollout.core import Request, SampleKey

__all__ = ["History", "PastRollout"]

_PER_PROMPT = 32
"""Rollouts of a prompt: older policies' say less, and all are gone through when the prompt is asked again."""


@dataclass(frozen=True, slots=True)
class PastRollout:
    policy_version: int  # of its last token
    key: SampleKey | None
    """Key that its tokens were drawn with; None: it was greedy, or its checkpoint does not say."""
    token_ids: array  # type code "i"; without the prompt


class History:
    """Past rollouts with at most `max_tokens` tokens in all; drops those of the prompt whose newest rollout is the oldest."""

    def __init__(self, *, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._num_tokens = 0
        self._rollouts: OrderedDict[tuple[int, ...], list[PastRollout]] = OrderedDict()

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    def add(self, request: Request, token_ids: Sequence[int], policy_version: int) -> None:
        """A request was answered."""
        rollout = PastRollout(policy_version, request.drawn_with, array("i", token_ids))
        self._add(request.token_ids, rollout)

    def _add(self, prompt: tuple[int, ...], rollout: PastRollout) -> None:
        rollouts = self._rollouts.setdefault(prompt, [])
        rollouts.append(rollout)
        self._rollouts.move_to_end(prompt)
        self._num_tokens += len(rollout.token_ids)
        if len(rollouts) > _PER_PROMPT:
            self._drop_oldest_of(prompt)
        while self._num_tokens > self._max_tokens:
            self._drop_oldest_of(next(iter(self._rollouts)))

    def of(self, prompt: tuple[int, ...]) -> Sequence[PastRollout]:
        """Oldest first."""
        return self._rollouts.get(prompt, ())

    def state_dict(self) -> dict[str, Any]:
        return {"rollouts": list(self._entries())}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        # between version and tokens stands the key, or nothing where the rollout has none
        for prompt, version, *key, token_ids in saved["rollouts"]:
            drawn_with = SampleKey(*key[0]) if key else None
            self._add(tuple(prompt), PastRollout(version, drawn_with, array("i", token_ids)))

    def _entries(self) -> Iterator[list[Any]]:
        for prompt, rollouts in self._rollouts.items():
            for rollout in rollouts:
                key = [list(astuple(rollout.key))] if rollout.key else []
                yield [list(prompt), rollout.policy_version, *key, rollout.token_ids.tolist()]

    def _drop_oldest_of(self, prompt: tuple[int, ...]) -> None:
        rollouts = self._rollouts[prompt]
        self._num_tokens -= len(rollouts.pop(0).token_ids)
        if not rollouts:
            del self._rollouts[prompt]
