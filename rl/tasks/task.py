"""Task: prompts to train on, prompts to evaluate on, and the scorer of both."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from rl.rewards.scorer import Scorer, load_scorer
from rl.tasks.config import ArithmeticConfig, DatasetConfig, ReasoningGymConfig, TaskConfig
from rl.tasks.prompts import Prompt, PromptSplit

__all__ = ["Task", "load_prompts", "load_task"]


@dataclass(frozen=True)
class Task:
    name: str
    train: Sequence[Prompt]
    """Training prompts; `train[i].prompt_id == i`."""
    held_out: Sequence[Prompt]
    scorer: Scorer


def load_task(config: TaskConfig, *, needs_training: bool = True) -> Task:
    """Return the task that `config` describes, with the user's own scorer if `config.scorer` names one.

    Args:
        config: config of the task.
        needs_training: whether there must be prompts to train on; an evaluation needs none.

    Raises:
        ValueError: the config does not fit the data, the library or the user's module.
    """
    own_scorer = load_scorer(config.scorer) if config.scorer else None
    name, split, scorer = _build(
        config, needs_training=needs_training, checks_answers=not config.scorer
    )
    if own_scorer is not None:
        own_scorer.check_columns(list((split.train or split.held_out)[0].row))
    return Task(name=name, train=split.train, held_out=split.held_out, scorer=own_scorer or scorer)


def load_prompts(config: TaskConfig) -> PromptSplit:
    """Return a task's prompts, for comparison with those of another run. No scorer is imported, and answers are not
    checked.

    Raises:
        ValueError: the config does not fit the data or the library.
    """
    return _build(config, needs_training=False, checks_answers=False)[1]


def _build(
    config: TaskConfig, *, needs_training: bool, checks_answers: bool
) -> tuple[str, PromptSplit, Scorer]:
    # the libraries of the tasks take 1-2 s to import, so only that of the chosen task is imported
    match config:
        case ArithmeticConfig():
            from rl.rewards.arithmetic import score_arithmetic
            from rl.tasks.arithmetic import arithmetic_prompts

            return "arithmetic", arithmetic_prompts(config), score_arithmetic
        case ReasoningGymConfig():
            from rl.rewards.reasoning_gym_task import ReasoningGymScorer
            from rl.tasks.reasoning_gym_task import reasoning_gym_prompts

            scorer = ReasoningGymScorer(config.name, params=config.params)
            return config.name, reasoning_gym_prompts(config), scorer
        case DatasetConfig():
            from rl.rewards.answers import parse_gold
            from rl.rewards.mathematics import score_mathematics
            from rl.tasks.dataset import dataset_prompts

            check = partial(parse_gold, column=config.answer_column) if checks_answers else None
            split = dataset_prompts(config, check_answer=check, needs_training=needs_training)
            return config.path, split, score_mathematics
        case _:
            raise TypeError(f"no task for a {type(config).__name__}")
