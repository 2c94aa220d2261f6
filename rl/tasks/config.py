"""Config schema of the `task` group."""

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
    """System message for prompts that have none; empty sends none."""
    user_prompt: str = "{question}"
    """User message of every prompt. `{question}` is replaced by the question, and `{column}` by that column of the
    row. `{{column}}` gives `{column}`, and braces after a LaTeX command stay, as in `\\boxed{answer}`."""
    reply_prefix: str = ""
    """Beginning of every reply, with the same placeholders; it is given, not sampled. Empty: replies have no given
    beginning."""
    num_held_out: int | None = None
    """Number of prompts kept for evaluation, which are never trained on. None: 1,000, or fewer if the task has
    fewer to spare; a dataset spares a tenth of its rows."""
    scorer: str = ""
    """Your own scorer as `package.module:function` or `path/to/file.py:function`. Empty: the task's default
    scorer."""
    seed: int = 0
    """Seed of the generation or the shuffling of prompts. It is separate from the run's `seed`, so that runs with
    different seeds share the held-out prompts."""

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
        """Return the number of held-out prompts: `num_held_out` if it is set, else the default, at most `most`."""
        if self.num_held_out is not None:
            return self.num_held_out
        return DEFAULT_HELD_OUT if most is None else min(DEFAULT_HELD_OUT, most)


@dataclass(kw_only=True)
class ArithmeticConfig(TaskConfig):
    """Schema of `task=arithmetic`: sums and differences of two terms."""

    operations: list[Operation] = field(default_factory=lambda: list(Operation))
    """Operations to ask for. `task.operations=[sum]` is easier for a small model."""
    min_digits: int = 1
    """Minimum number of digits of a term."""
    max_digits: int = 2
    """Maximum number of digits of a term."""
    num_train: int = 8000
    """Number of training prompts, which reasoning-gym generates."""

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
    """Schema of `task=reasoning_gym`: any task of the library reasoning-gym, scored by the library."""

    name: str = MISSING
    """Name of the task in the library, for example `number_sorting`."""
    params: dict[str, Any] = field(default_factory=dict)
    """Arguments of `reasoning_gym.create_dataset`, for example `task.params.max_numbers=5`."""
    num_train: int = 8000

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_train > 0, "task.num_train", "> 0", self.num_train)


@dataclass(kw_only=True)
class DatasetConfig(TaskConfig):
    """Schema of `task=dataset`: rows of a dataset, scored as mathematics unless `scorer` is set."""

    path: str = MISSING
    """Location of the rows: a file (.jsonl, .json, .csv, .tsv, .parquet, .arrow; also with .gz, .bz2, .xz or
    .zst), a directory of such files or one that `datasets` saved, a pattern such as `data/*.jsonl`, or a hub id. A
    file whose name looks like a pattern is read as that file."""
    subset: str = ""
    """Subset of a hub id that has several, for example `main`."""
    split: str = "train"
    """Name of a split, or a slice such as `train[:100]`. A single file counts as the split that is asked for."""
    held_out_path: str = ""
    """Location of held-out rows, in the forms of `path`. Empty: `num_held_out` rows of `path` are held out."""
    held_out_split: str = "test"
    """Split of `held_out_path`."""
    prompt_column: str = "question"
    """Column with the questions, as texts or lists of chat messages. A dot reaches into structs and lists:
    `extra.question`."""
    answer_column: str = "answer"
    """Column with the gold answers; a dot reaches into structs and lists: `reward_model.ground_truth`, `answers.0`."""
    max_prompt_tokens: int = 0
    """Maximum number of tokens of a prompt; longer prompts are left out, and their number is logged. 0: a prompt
    that leaves no room for a completion is an error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.max_prompt_tokens >= 0, "task.max_prompt_tokens", ">= 0", self.max_prompt_tokens
        )
