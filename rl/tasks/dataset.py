"""Prompts from the rows of a Hugging Face dataset: a local file or a hub id."""

from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from rl.tasks.config import DatasetConfig
from rl.tasks.prompts import PromptForm, PromptSplit, keyed_permutation, split_prompts

__all__ = ["dataset_prompts"]

_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}

Row = dict[str, Any]


def dataset_prompts(config: DatasetConfig) -> PromptSplit:
    """Held-out rows are drawn by `config.seed` from `config.held_out_path`, or else from the training rows.

    A row keeps its columns; `question` and `answer` are those that the config names.

    Raises:
        ValueError: a file, split or column is missing, a value is null, or the rows are too few.
    """
    rows = _read_rows(config, path=config.path, split=config.split, key="task.path")
    if config.held_out_path:
        candidates = _read_rows(
            config,
            path=config.held_out_path,
            split=config.held_out_split,
            key="task.held_out_path",
        )
        held_out_rows, _ = _draw_held_out(candidates, config=config)
        train_rows = rows
    else:
        held_out_rows, train_rows = _draw_held_out(rows, config=config)
        if not train_rows:
            raise ValueError(
                f"task.num_held_out must be < {len(rows)}, the rows of task.path={config.path}, so that some "
                f"are left to train on; got {config.num_held_out}: lower it, or set task.held_out_path"
            )
    return split_prompts(
        train_rows=train_rows, held_out_rows=held_out_rows, form=PromptForm.of(config)
    )


def _draw_held_out(rows: list[Row], *, config: DatasetConfig) -> tuple[list[Row], list[Row]]:
    """The held-out rows and the others, both in the order of the data."""
    if config.num_held_out > len(rows):
        raise ValueError(
            f"task.num_held_out must be <= {len(rows)}, the rows of "
            f"{config.held_out_path or config.path}; got {config.num_held_out}: lower it"
        )
    order = keyed_permutation(len(rows), seed=config.seed, epoch=0)
    drawn = set(order[: config.num_held_out].tolist())
    held_out = [row for index, row in enumerate(rows) if index in drawn]
    return held_out, [row for index, row in enumerate(rows) if index not in drawn]


def _read_rows(config: DatasetConfig, *, path: str, split: str, key: str) -> list[Row]:
    dataset = _load(path, subset=config.subset, split=split, key=key)
    columns = {"prompt_column": config.prompt_column, "answer_column": config.answer_column}
    for column_key, column in columns.items():
        if column not in dataset.column_names:
            raise ValueError(
                f"task.{column_key} must be a column of {path}, got {column!r}; "
                f"there are {', '.join(dataset.column_names)}"
            )
    rows: list[Row] = []
    for number, row in enumerate(dataset.to_list(), start=1):
        question, answer = row[config.prompt_column], row[config.answer_column]
        if not isinstance(question, str) or answer is None:
            raise ValueError(
                f"row {number} of {path}, counted from 1, must have a text in {config.prompt_column!r} and a "
                f"value in {config.answer_column!r}, got {question!r} and {answer!r}; correct or remove it"
            )
        rows.append({**row, "question": question, "answer": answer})
    return rows


def _load(path: str, *, subset: str, split: str, key: str) -> Dataset:
    if Path(path).suffix in _FORMATS and not Path(path).is_file():
        raise ValueError(f"{key}: there is no file {Path(path).resolve()}")
    try:
        dataset = _load_split(path, subset=subset, split=split)
    except (FileNotFoundError, ConnectionError) as error:  # of the hub
        raise ValueError(
            f"{key} must be a .jsonl, .json or .parquet file or a hub id, got {path!r}: {error}"
        ) from error
    except (DatasetGenerationError, ValueError) as error:
        cause = error.__cause__ or error
        raise ValueError(f"{key}={path}, split {split!r}, cannot be read: {cause}") from error
    except StopIteration:  # what an empty file raises
        dataset = Dataset.from_list([])
    if len(dataset) == 0:
        raise ValueError(f"{key}={path} must have rows, got none in split {split!r}")
    return dataset


def _load_split(path: str, *, subset: str, split: str) -> Dataset:
    file_format = _FORMATS.get(Path(path).suffix)
    if file_format is None:
        dataset = load_dataset(path, name=subset or None, split=split)
    else:
        # a file is the split that is asked for, which may be a slice such as train[:100]
        data_files = {split.partition("[")[0]: path}
        dataset = load_dataset(file_format, data_files=data_files, split=split)
    assert isinstance(dataset, Dataset), f"one split must give a Dataset, got {type(dataset)}"
    return dataset
