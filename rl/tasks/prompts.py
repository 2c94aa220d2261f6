"""Prompts, their split into trained and held out, and the order in which they are trained on."""

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
    """What is asked, and what a scorer may know of it."""

    question: Question
    """As the task has it: a text, or chat messages."""
    answer: Any
    """The gold answer, as the task has it."""
    row: dict[str, Any]
    """The task's own columns, untouched."""
    origin: str = ""
    """Where it comes from, for people: `row 31 of problems.jsonl`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt(Problem):
    """A problem as it is put to the policy."""

    prompt_id: int
    """Unique within the task: 0 and up for training prompts, then the held-out ones."""
    messages: tuple[Message, ...]
    """Chat messages: `role` and `content`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSplit:
    train: Sequence[Prompt]
    """`train[i].prompt_id == i`."""
    held_out: Sequence[Prompt]
    """Shares no question with `train`."""


def make_prompt(prompt_id: int, *, problem: Problem, form: PromptForm) -> Prompt:
    """Returns the prompt that puts a problem in a form.

    Raises:
        ValueError: the problem and the form do not go together.
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
    """Returns the problem of a row that has its text in `question` and its answer in `answer`."""
    return Problem(question=row["question"], answer=row["answer"], row=row)


def split_prompts(
    *,
    train: Sequence[Problem],
    held_out: Iterable[Problem],
    form: PromptForm,
    needs_training: bool = True,
) -> PromptSplit:
    """Returns prompts of both sets; training problems that ask a held-out question are left out, and counted in the log.

    Raises:
        ValueError: nothing is left to train on, and something must be.
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
        logger.warning("left out %d of %d training prompts: held out too", num_removed, len(train))
    prompts = [
        make_prompt(prompt_id, problem=problem, form=form)
        for prompt_id, problem in enumerate([*kept, *held_out])
    ]
    return PromptSplit(train=prompts[: len(kept)], held_out=prompts[len(kept) :])


def identity(problem: Problem) -> str:
    """Returns the text by which two problems that ask the same are known."""
    question = problem.question
    return question if isinstance(question, str) else json.dumps(question, default=str)


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
