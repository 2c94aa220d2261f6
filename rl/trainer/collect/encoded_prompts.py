"""Prompts with their token ids, encoded on first access."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rl.tasks.config import DatasetConfig, TaskConfig
from rl.tasks.prompts import Prompt
from rl.tasks.task import Task
from rollout.text.prompts import encode_prompts

__all__ = ["EncodedPrompts", "leave_out_long"]

logger = logging.getLogger("paceline")


class EncodedPrompts:
    """Sequence in which `prompts[i]` is (prompt, token ids). Prompts may be generated on access, so each is
    created only when needed."""

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
        """Return the numbers of tokens of the first `count` prompts, which are encoded together."""
        indices = range(min(count, len(self)))
        self._encode([i for i in indices if i not in self._token_ids])
        return [len(self._token_ids[i]) for i in indices]

    def render(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, including special ones, as the model sees it."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=False)

    def _encode(self, indices: Sequence[int]) -> None:
        messages = [self.prompts[i].messages for i in indices]
        encoded = encode_prompts(messages, self._tokenizer)
        self._token_ids |= dict(zip(indices, encoded, strict=True))


def leave_out_long(task: Task, config: TaskConfig, tokenizer: Any) -> Task:
    """Return the task without prompts of more than `task.max_prompt_tokens` tokens; the log says how many were left
    out.

    Raises:
        ValueError: no training prompt or no held-out prompt is left.
    """
    if not isinstance(config, DatasetConfig) or not config.max_prompt_tokens:
        return task
    limit, kept = config.max_prompt_tokens, []
    for what, prompts in (("training", task.train), ("held-out", task.held_out)):
        lengths = EncodedPrompts(prompts, tokenizer).lengths(len(prompts))
        kept.append([p for p, length in zip(prompts, lengths, strict=True) if length <= limit])
        if prompts and not kept[-1]:
            raise ValueError(
                f"task.max_prompt_tokens must leave some of the {len(prompts)} {what} prompts, of which the "
                f"shortest has {min(lengths)} tokens, got {limit}"
            )
        if num_long := len(prompts) - len(kept[-1]):
            logger.warning(
                "left out %d of %d %s prompts: more than task.max_prompt_tokens=%d",
                num_long,
                len(prompts),
                what,
                limit,
            )
    train, held_out = kept
    numbered = [
        replace(prompt, prompt_id=index) for index, prompt in enumerate([*train, *held_out])
    ]
    return replace(task, train=numbered[: len(train)], held_out=numbered[len(train) :])
