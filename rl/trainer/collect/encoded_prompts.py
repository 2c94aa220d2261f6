"""Prompts with their token ids, encoded when first asked for."""

from collections.abc import Sequence
from typing import Any

from rl.tasks.prompts import Prompt
from rollout.text.prompts import encode_prompts

__all__ = ["EncodedPrompts"]


class EncodedPrompts:
    """`prompts[i]` is (prompt, token ids). Prompts may be generated lazily, so none is touched before its turn."""

    def __init__(self, prompts: Sequence[Prompt], tokenizer: Any) -> None:
        self.prompts = prompts
        self._tokenizer = tokenizer
        self._token_ids: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> tuple[Prompt, list[int]]:
        prompt = self.prompts[index]
        if index not in self._token_ids:
            self._encode([index])
        return prompt, self._token_ids[index]

    def lengths(self, count: int) -> list[int]:
        """Tokens of the first `count` prompts, which are encoded together."""
        indices = range(min(count, len(self)))
        self._encode([i for i in indices if i not in self._token_ids])
        return [len(self._token_ids[i]) for i in indices]

    def _encode(self, indices: Sequence[int]) -> None:
        messages = [self.prompts[i].messages for i in indices]
        encoded = encode_prompts(messages, self._tokenizer)
        self._token_ids |= dict(zip(indices, encoded, strict=True))
