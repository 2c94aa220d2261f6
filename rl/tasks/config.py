"""The schema of the `task` group."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from rollout.config import require

DEFAULT_HELD_OUT = 1000


class Operation(Enum):
    sum = "+"
    difference = "-"


@dataclass(kw_only=True)
class TaskConfig:
    """Base of the `task` group."""

    system_prompt: str = ""
    """Sent as the system message of every prompt that has none of its own; empty sends none."""
    user_prompt: str = "{question}"
    """The user message of every prompt. `{question}` stands for the question, `{column}` for that column of the row;
    `{{column}}` and what follows a command of LaTeX, as in `\\boxed{answer}`, keep their braces."""
    reply_prefix: str = ""
    """How every reply begins, given and not sampled, with the same placeholders. Empty: not at all."""
    num_held_out: int | None = None
    """Prompts kept for evaluation; they are never trained on. None: 1,000, or as many as the task can spare: of a
    dataset's rows a tenth."""
    scorer: str = ""
    """The user's own scorer, `package.module:function` or `path/to/file.py:function`; empty: the task's own."""
    seed: int = 0
    """Seed of the generated or shuffled prompts; separate from the run's `seed`, so that runs share the held-out set."""

    def __post_init__(self) -> None:
        is_count = self.num_held_out is None or self.num_held_out > 0
        require(is_count, "task.num_held_out", "> 0", self.num_held_out)
        require(
            "{question}" not in self.system_prompt,
            "task.system_prompt",
            "without {question}, which belongs in task.user_prompt",
            self.system_prompt,
        )
        require(
            "{question}" in self.user_prompt,
            "task.user_prompt",
            "a text with {question} in it",
            self.user_prompt,
        )
        require(self.seed >= 0, "task.seed", ">= 0", self.seed)

    def held_out_count(self, most: int | None = None) -> int:
        """Returns how many prompts are held out, where the task can spare at most so many; a number that is given stands."""
        if self.num_held_out is not None:
            return self.num_held_out
        return DEFAULT_HELD_OUT if most is None else min(DEFAULT_HELD_OUT, most)


@dataclass(kw_only=True)
class ArithmeticConfig(TaskConfig):
    """Two-term sums and differences."""

    operations: list[Operation] = field(default_factory=lambda: list(Operation))
    """Sums alone are within a small model's reach: `task.operations=[sum]`."""
    min_digits: int = 1
    """Least number of digits of a term."""
    max_digits: int = 2
    """Greatest number of digits of a term."""
    num_train: int = 8000
    """Prompts to train on; reasoning-gym draws them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.operations), "task.operations", "[sum], [difference] or both", [])
        require(self.min_digits >= 1, "task.min_digits", ">= 1", self.min_digits)
        require(
            self.max_digits >= self.min_digits,
            "task.max_digits",
            f">= task.min_digits ({self.min_digits})",
            self.max_digits,
        )
        require(self.num_train > 0, "task.num_train", "> 0", self.num_train)


@dataclass(kw_only=True)
class ReasoningGymConfig(TaskConfig):
    """Any task of reasoning-gym, scored by that library."""

    name: str = MISSING
    """The library's name of the task, for example `number_sorting`."""
    params: dict[str, Any] = field(default_factory=dict)
    """Handed to `reasoning_gym.create_dataset`, for example `task.params.max_numbers=5`."""
    num_train: int = 8000

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_train > 0, "task.num_train", "> 0", self.num_train)


@dataclass(kw_only=True)
class DatasetConfig(TaskConfig):
    """Rows of a dataset, scored as mathematics unless `scorer` says otherwise."""

    path: str = MISSING
    """A file (.jsonl, .json, .csv, .tsv, .parquet, .arrow; also with .gz, .bz2, .xz or .zst), a directory of such files or one
    that `datasets` saved, a pattern such as `data/*.jsonl`, or a hub id. A file with a pattern's name is that file."""
    subset: str = ""
    """Subset of a hub id that has several, for example `main`."""
    split: str = "train"
    """Name of a split, or a slice such as `train[:100]`; one file is the split that is asked for."""
    held_out_path: str = ""
    """Location of held-out rows, as for `path`; empty: `num_held_out` rows are split off."""
    held_out_split: str = "test"
    """Split of `held_out_path`."""
    prompt_column: str = "question"
    """Column with texts or lists of chat messages. A dot reaches into structs and lists: `extra.question`."""
    answer_column: str = "answer"
    """Column with the gold answers; a dot reaches into structs and lists: `reward_model.ground_truth`, `answers.0`."""
    max_prompt_tokens: int = 0
    """Prompts of more tokens are left out, and counted. 0: one that leaves no room for a completion is an error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.max_prompt_tokens >= 0, "task.max_prompt_tokens", ">= 0", self.max_prompt_tokens
        )
