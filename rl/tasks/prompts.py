"""Prompts, their split into trained and held out, and the order in which they are trained on."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from rl.tasks.config import TaskConfig

__all__ = [
    "Prompt",
    "PromptOrder",
    "PromptSplit",
    "keyed_permutation",
    "make_prompt",
    "split_prompts",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    prompt_id: int
    """Unique within the task: 0 and up for training prompts, then the held-out ones."""
    messages: tuple[dict[str, str], ...]
    """Chat messages: `role` and `content`."""
    row: dict[str, Any]
    """Handed to the scorer: `question`, `answer`, and what else the task knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSplit:
    train: Sequence[Prompt]
    """`train[i].prompt_id == i`."""
    held_out: Sequence[Prompt]
    """Shares no question with `train`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptForm:
    """What stands around a question."""

    system_prompt: str = ""
    """The system message; empty sends none."""
    user_prompt: str = "{question}"
    """The user message; `{question}` stands for the question."""
    reply_prefix: str = ""
    """How the reply begins, given and not sampled; `{question}` stands for the question."""

    @classmethod
    def of(cls, config: TaskConfig) -> Self:
        return cls(
            system_prompt=config.system_prompt,
            user_prompt=config.user_prompt,
            reply_prefix=config.reply_prefix,
        )


def make_prompt(prompt_id: int, *, row: dict[str, Any], form: PromptForm) -> Prompt:
    """The prompt that asks `row["question"]`."""
    question = row["question"]
    messages = []
    if form.system_prompt:
        messages.append({"role": "system", "content": form.system_prompt})
    messages.append({"role": "user", "content": form.user_prompt.replace("{question}", question)})
    if form.reply_prefix:
        begun = form.reply_prefix.replace("{question}", question)
        messages.append({"role": "assistant", "content": begun})
    return Prompt(prompt_id=prompt_id, messages=tuple(messages), row=row)


def split_prompts(
    *,
    train_rows: Sequence[dict[str, Any]],
    held_out_rows: Iterable[dict[str, Any]],
    form: PromptForm,
) -> PromptSplit:
    """Prompts of both sets; training rows that ask a held-out question are left out, and counted in the log.

    Raises:
        ValueError: nothing is left to train on.
    """
    held_out_rows = list(held_out_rows)
    held_out_questions = {row["question"] for row in held_out_rows}
    kept_rows = [row for row in train_rows if row["question"] not in held_out_questions]
    if not kept_rows:
        raise ValueError(
            f"all {len(train_rows)} training prompts are among the {len(held_out_rows)} held-out ones; "
            "lower task.num_held_out or hold out other data"
        )
    if num_removed := len(train_rows) - len(kept_rows):
        logger.warning(
            "left out %d of %d training prompts: held out too", num_removed, len(train_rows)
        )
    prompts = [
        make_prompt(prompt_id, row=row, form=form)
        for prompt_id, row in enumerate([*kept_rows, *held_out_rows])
    ]
    return PromptSplit(train=prompts[: len(kept_rows)], held_out=prompts[len(kept_rows) :])


def keyed_permutation(size: int, *, seed: int, epoch: int) -> np.ndarray:
    """[size] int64, a permutation that depends on the arguments alone, on any machine and version of numpy.

    Raises:
        ValueError: `seed` is negative.
    """
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    # Generator.permutation may change between versions of numpy; the bits of Philox may not
    random_bits = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(size)
    return np.argsort(random_bits, kind="stable")


class PromptOrder:
    """Every epoch passes once over the prompts, in an order of its own.

    There is no state but the ordinal, which is therefore all that a checkpoint must hold.
    """

    def __init__(self, num_prompts: int, *, seed: int) -> None:
        if num_prompts <= 0:
            raise ValueError(f"num_prompts must be > 0, got {num_prompts}")
        self._num_prompts = num_prompts
        self._seed = seed
        self._epoch = 0
        self._permutation = keyed_permutation(num_prompts, seed=seed, epoch=0)

    def prompt_id(self, ordinal: int) -> int:
        """The prompt of the `ordinal`-th group of the run, counted from 0."""
        if ordinal < 0:
            raise ValueError(f"ordinal must be >= 0, got {ordinal}")
        epoch, position = divmod(ordinal, self._num_prompts)
        if epoch != self._epoch:
            self._permutation = keyed_permutation(self._num_prompts, seed=self._seed, epoch=epoch)
            self._epoch = epoch
        return int(self._permutation[position])
