"""Prompts, their split into training and held-out prompts, and the order of training."""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rl.tasks.form import PromptForm
from rl.tasks.messages import Message, Question

__all__ = [
    "Problem",
    "Prompt",
    "PromptOrder",
    "PromptSplit",
    "identity",
    "keyed_permutation",
    "make_prompt",
    "problem_of",
    "split_prompts",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Question, and the data that a scorer may use."""

    question: Question
    """Question in the task's own form: a text, or chat messages."""
    answer: Any
    """Gold answer in the task's own form."""
    row: dict[str, Any]
    """Columns of the problem's row in the task's data, unchanged."""
    origin: str = ""
    """Origin of the problem for messages, for example `row 31 of problems.jsonl`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt(Problem):
    """Problem in the form in which the policy sees it."""

    prompt_id: int
    """Unique number within the task: training prompts count from 0, then held-out prompts follow."""
    messages: tuple[Message, ...]
    """Chat messages, each with `role` and `content`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSplit:
    train: Sequence[Prompt]
    """Training prompts; `train[i].prompt_id == i`."""
    held_out: Sequence[Prompt]
    """Held-out prompts; they share no question with `train`."""


def make_prompt(prompt_id: int, *, problem: Problem, form: PromptForm) -> Prompt:
    """Return the prompt that presents a problem in a form.

    Raises:
        ValueError: the form names a column that the problem lacks, or does not fit its messages.
    """
    try:
        messages = form.messages(problem.question, problem.row)
    except ValueError as error:
        origin = f" ({problem.origin})" if problem.origin else ""
        raise ValueError(f"{error}{origin}") from error
    return Prompt(
        prompt_id=prompt_id,
        messages=messages,
        question=problem.question,
        answer=problem.answer,
        row=problem.row,
        origin=problem.origin,
    )


def problem_of(row: dict[str, Any]) -> Problem:
    """Return the problem of a row with a question in `question` and an answer in `answer`."""
    return Problem(question=row["question"], answer=row["answer"], row=row)


def split_prompts(
    *,
    train: Sequence[Problem],
    held_out: Iterable[Problem],
    form: PromptForm,
    needs_training: bool = True,
) -> PromptSplit:
    """Return the prompts of both sets. Training problems with a held-out question are left out, and the log says how
    many.

    Raises:
        ValueError: training needs prompts and none is left.
    """
    held_out = list(held_out)
    asked = {identity(problem) for problem in held_out}
    kept = [problem for problem in train if identity(problem) not in asked]
    if not kept and needs_training:
        raise ValueError(
            f"all {len(train)} training prompts are among the {len(held_out)} held-out ones; "
            "lower task.num_held_out or hold out other data"
        )
    if num_removed := len(train) - len(kept):
        logger.warning(
            "left out %d of %d training prompts whose questions are held out",
            num_removed,
            len(train),
        )
    prompts = [
        make_prompt(prompt_id, problem=problem, form=form)
        for prompt_id, problem in enumerate([*kept, *held_out])
    ]
    return PromptSplit(train=prompts[: len(kept)], held_out=prompts[len(kept) :])


def identity(problem: Problem) -> str:
    """Return a text that is equal for two problems with the same question."""
    question = problem.question
    return question if isinstance(question, str) else json.dumps(question, default=str)


def keyed_permutation(size: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return a [size] int64 permutation that depends only on the arguments, on any machine and with any version of
    numpy.

    Raises:
        ValueError: `seed` is negative.
    """
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    # Generator.permutation may change between versions of numpy; the bits of Philox do not
    random_bits = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(size)
    return np.argsort(random_bits, kind="stable")


class PromptOrder:
    """Order of the training prompts. Every epoch passes once over all prompts, in a different order.

    An ordinal number determines its prompt, so a checkpoint needs to store only the ordinal.
    """

    def __init__(self, num_prompts: int, *, seed: int) -> None:
        if num_prompts <= 0:
            raise ValueError(f"num_prompts must be > 0, got {num_prompts}")
        self._num_prompts = num_prompts
        self._seed = seed
        self._epoch = 0
        self._permutation = keyed_permutation(num_prompts, seed=seed, epoch=0)

    def prompt_id(self, ordinal: int) -> int:
        """Return the prompt of the `ordinal`-th group of the run, counted from 0."""
        if ordinal < 0:
            raise ValueError(f"ordinal must be >= 0, got {ordinal}")
        epoch, position = divmod(ordinal, self._num_prompts)
        if epoch != self._epoch:
            self._permutation = keyed_permutation(self._num_prompts, seed=self._seed, epoch=epoch)
            self._epoch = epoch
        return int(self._permutation[position])
