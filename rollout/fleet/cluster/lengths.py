"""Lengths of past completions, by prompt. Plain Python."""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["LengthHistory"]

_MEMORY = 16  # completions that a mean looks back on, about


class LengthHistory:
    """A running mean per prompt, for at most `max_prompts`: the prompt whose newest completion is oldest is forgotten first.

    Prompts are known by their tokens, as in the history of drafts: whoever asks again has them, and nothing else has to be
    handed over with a request.
    """

    def __init__(self, *, max_prompts: int = 100_000) -> None:
        self._max_prompts = max_prompts
        self._means: OrderedDict[str, tuple[int, float]] = OrderedDict()  # count, mean
        self._overall = (0, 0.0)

    def add(self, prompt: Sequence[int], num_tokens: int) -> None:
        key = _key(prompt)
        self._means[key] = _updated(self._means.pop(key, (0, 0.0)), num_tokens, memory=_MEMORY)
        self._overall = _updated(self._overall, num_tokens, memory=64 * _MEMORY)
        if len(self._means) > self._max_prompts:
            self._means.popitem(last=False)

    def expected(self, prompt: Sequence[int], *, max_tokens: int) -> float:
        """Returns the expected tokens of the next completion: by this prompt's past, else by that of any prompt, else `max_tokens`."""
        count, mean = self._means.get(_key(prompt), self._overall)
        return min(mean, max_tokens) if count else float(max_tokens)

    def state_dict(self) -> dict[str, Any]:
        return {
            "overall": list(self._overall),
            "means": [[key, *value] for key, value in self._means.items()],
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        count, mean = saved["overall"]
        self._overall = (count, mean)
        self._means = OrderedDict((key, (count, mean)) for key, count, mean in saved["means"])


def _updated(entry: tuple[int, float], value: float, *, memory: int) -> tuple[int, float]:
    count, mean = entry
    count = min(count + 1, memory)
    return count, mean + (value - mean) / count


def _key(prompt: Sequence[int]) -> str:
    return hashlib.blake2b(array("q", prompt).tobytes(), digest_size=8).hexdigest()
