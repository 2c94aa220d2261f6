"""Prompts of any task of reasoning-gym.

Items are generated on access, which takes 10 us in most tasks, 50 ms in `sudoku` and 1 s in `knight_swap`. Some items
of isomorphic_strings, list_functions, polynomial_multiplication, ransom_note and word_ladder depend on the order of
sets, so another process generates the same ones only with the same PYTHONHASHSEED.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from typing import overload

from reasoning_gym import create_dataset
from reasoning_gym.dataset import ProceduralDataset
from reasoning_gym.factory import DATASETS

from rl.tasks.config import ReasoningGymConfig
from rl.tasks.form import PromptForm
from rl.tasks.prompts import Prompt, PromptSplit, make_prompt, problem_of

__all__ = ["reasoning_gym_prompts"]

# item i is drawn with seed + i, so the held-out seed must be further away than any number of training items
_HELD_OUT_SEED_OFFSET = 1 << 31


class TrainPrompts(Sequence[Prompt]):
    """Training prompts, generated on access. Prompt i is item i of the dataset, or the next item whose question is
    not held out."""

    def __init__(
        self, dataset: ProceduralDataset, *, held_out_questions: set[str], form: PromptForm
    ) -> None:
        self._dataset = dataset
        self._held_out_questions = held_out_questions
        self._form = form

    def __len__(self) -> int:
        return len(self._dataset)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        prompt_ids = range(len(self))[index]
        if isinstance(prompt_ids, range):
            return [self._make(prompt_id) for prompt_id in prompt_ids]
        return self._make(prompt_ids)

    def _make(self, prompt_id: int) -> Prompt:
        for offset in range(len(self)):
            row = self._dataset[(prompt_id + offset) % len(self)]
            if row["question"] not in self._held_out_questions:
                return make_prompt(prompt_id, problem=problem_of(row), form=self._form)
        raise ValueError(
            f"every one of the {len(self)} training questions is among the "
            f"{len(self._held_out_questions)} held-out ones; lower task.num_held_out, raise "
            "task.num_train, or choose task.params that allow more questions"
        )


def reasoning_gym_prompts(config: ReasoningGymConfig) -> PromptSplit:
    """Return training prompts, which are generated on access, and held-out prompts, which are generated now.

    Raises:
        ValueError: the library has no such task, or the task rejects `config.params`.
    """
    _check_params(config)
    num_held_out = config.held_out_count()
    held_out_seed = config.seed + _HELD_OUT_SEED_OFFSET
    held_out_items = _create(config, seed=held_out_seed, size=num_held_out)
    held_out_rows = [held_out_items[index] for index in range(num_held_out)]
    train = TrainPrompts(
        _create(config, seed=config.seed, size=config.num_train),
        held_out_questions={row["question"] for row in held_out_rows},
        form=PromptForm.of(config),
    )
    _ = train[0]  # raises if there is nothing to train on
    held_out = [
        make_prompt(prompt_id, problem=problem_of(row), form=PromptForm.of(config))
        for prompt_id, row in enumerate(held_out_rows, start=len(train))
    ]
    return PromptSplit(train=train, held_out=held_out)


def _check_params(config: ReasoningGymConfig) -> None:
    if config.name not in DATASETS:
        matches = difflib.get_close_matches(config.name, DATASETS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(matches)}?" if matches else f"it has {_join(DATASETS)}"
        raise ValueError(f"task.name: reasoning-gym has no task {config.name!r}; {hint}")
    fields = {field.name for field in dataclasses.fields(DATASETS[config.name][1])}
    known = fields - {"seed", "size"}
    if reserved := config.params.keys() & {"seed", "size"}:
        raise ValueError(
            f"task.params must not hold {_join(reserved)}: set task.seed and task.num_train"
        )
    if unknown := config.params.keys() - known:
        raise ValueError(
            f"task.params: {config.name} has no {_join(unknown)}; it has {_join(known)}"
        )


def _create(config: ReasoningGymConfig, *, seed: int, size: int) -> ProceduralDataset:
    try:
        return create_dataset(config.name, **config.params, seed=seed, size=size)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(
            f"task.params={config.params}: {config.name} rejects them: {error}"
        ) from error


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
