"""Prompts from the rows of a file, a directory or the hub.

A prompt has the question and the gold answer as fields of its own, beside the unchanged columns of its row.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rl.tasks.columns import describe_columns, reach
from rl.tasks.config import DatasetConfig
from rl.tasks.form import PromptForm
from rl.tasks.messages import Question, to_question
from rl.tasks.prompts import Problem, PromptSplit, keyed_permutation, split_prompts
from rl.tasks.sources import SourceRow, read_rows

__all__ = ["CheckAnswer", "dataset_prompts"]

logger = logging.getLogger("paceline")

CheckAnswer = Callable[[Any], object]
"""Function that raises a ValueError if a value is not a gold answer. Another message quotes its message, which
must be a clause."""

_MAX_NUMBERS = 5


def dataset_prompts(
    config: DatasetConfig,
    *,
    check_answer: CheckAnswer | None = None,
    needs_training: bool = True,
) -> PromptSplit:
    """Return the prompts of a dataset.

    Held-out rows are drawn by `config.seed` from `config.held_out_path`, or else from the training rows.

    Args:
        config: config of the task.
        check_answer: function called with every gold answer; None: only missing answers are errors.
        needs_training: whether some rows must be left to train on.

    Raises:
        ValueError: a file, split or column is missing, a value is not a prompt or not an answer, or there are too few
            rows.
    """
    problems = _read_problems(
        config, path=config.path, split=config.split, key="task.path", check_answer=check_answer
    )
    if config.held_out_path:
        candidates = _read_problems(
            config,
            path=config.held_out_path,
            split=config.held_out_split,
            key="task.held_out_path",
            check_answer=check_answer,
        )
        num_held_out = config.held_out_count(len(candidates))
        held_out, _ = _draw_held_out(candidates, num_held_out, config=config)
        train = problems
    else:
        num_held_out = config.held_out_count(_default_share(len(problems)))
        held_out, train = _draw_held_out(problems, num_held_out, config=config)
        if not train and needs_training:
            raise ValueError(
                f"task.num_held_out must be < {len(problems)}, the rows of task.path={config.path}, so that some "
                f"are left to train on; got {num_held_out}: lower it, or set task.held_out_path"
            )
        if config.num_held_out is None:
            logger.info(
                "held out %d of %d rows, by default at most a tenth; task.num_held_out sets the number",
                num_held_out,
                len(problems),
            )
    form = PromptForm.of(config, hidden=config.answer_column)
    return split_prompts(train=train, held_out=held_out, form=form, needs_training=needs_training)


def _default_share(num_rows: int) -> int:
    """Return the number of rows to hold out by default: a tenth, at least one."""
    return max(1, num_rows // 10)


def _draw_held_out(
    problems: list[Problem], num_held_out: int, *, config: DatasetConfig
) -> tuple[list[Problem], list[Problem]]:
    """Return the held-out problems and the others, both in the order of the data."""
    if num_held_out > len(problems):
        raise ValueError(
            f"task.num_held_out must be <= {len(problems)}, the rows of "
            f"{config.held_out_path or config.path}; got {num_held_out}: lower it"
        )
    order = keyed_permutation(len(problems), seed=config.seed, epoch=0)
    drawn = set(order[:num_held_out].tolist())
    held_out = [problem for index, problem in enumerate(problems) if index in drawn]
    return held_out, [problem for index, problem in enumerate(problems) if index not in drawn]


def _read_problems(
    config: DatasetConfig, *, path: str, split: str, key: str, check_answer: CheckAnswer | None
) -> list[Problem]:
    rows = read_rows(path, subset=config.subset, split=split, key=key)
    questions = _column(rows, "prompt_column", config.prompt_column, path, to_question)
    check = check_answer or _refuse_missing
    answers = _column(
        rows, "answer_column", config.answer_column, path, lambda value: _checked(value, check)
    )
    _warn_of_begun_replies(questions)
    return [
        Problem(question=question, answer=answer, row=row.values, origin=row.origin)
        for row, question, answer in zip(rows, questions, answers, strict=True)
    ]


def _column(
    rows: Sequence[SourceRow],
    key: str,
    column: str,
    path: str,
    convert: Callable[[Any], Any],
) -> list[Any]:
    """Return the converted values of a column.

    Raises:
        ValueError: no row has the column, or some values cannot be converted; the message counts these rows.
    """
    try:
        values = [reach(row.values, column) for row in rows]
    except LookupError as error:
        raise ValueError(f"task.{key}={column} is not a column of {path}: {error}") from error
    if all(value is None for value in values) and not any(column in row.values for row in rows):
        raise ValueError(
            f"task.{key} must be a column of {path}, got {column!r}; there are "
            f"{describe_columns([row.values for row in rows[:100]])}"
        )
    converted, refused, reasons = [], [], []
    for row, value in zip(rows, values, strict=True):
        try:
            converted.append(convert(value))
        except ValueError as error:
            refused.append((row, value))
            reasons.append(str(error))
    if refused:
        row, value = refused[0]
        raise ValueError(
            f"{row.origin}, counted from 1, must have {_WANTED[key]} in the column {column!r}, got {value!r:.120}: "
            f"{reasons[0]}{_others([row for row, _ in refused], total=len(rows))}"
        )
    return converted


_WANTED = {"prompt_column": "a prompt", "answer_column": "an answer"}


def _others(rows: Sequence[SourceRow], *, total: int) -> str:
    """Return a note on further rejected rows: how many there are, and their first numbers; empty if there is only
    one."""
    if len(rows) == 1:
        return ""
    numbers = ", ".join(str(row.number) for row in rows[:_MAX_NUMBERS])
    more = ", ..." if len(rows) > _MAX_NUMBERS else ""
    return f" ({len(rows)} of {total} rows are refused: {numbers}{more})"


def _checked(value: Any, check: CheckAnswer) -> Any:
    check(value)
    return value


def _refuse_missing(value: Any) -> None:
    if value is None:
        raise ValueError("a missing value is no answer; remove the row or correct it")


def _warn_of_begun_replies(questions: Sequence[Question]) -> None:
    roles = Counter(q[-1]["role"] for q in questions if not isinstance(q, str))
    if roles["assistant"]:
        logger.warning(
            "%d of %d prompts end with the assistant's turn, which the policy continues; if that is the answer, "
            "name a column without it in task.prompt_column",
            roles["assistant"],
            len(questions),
        )
