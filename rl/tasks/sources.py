"""Sources of rows: local files, a directory that `datasets` saved, or a hub id.

Local files are read without a cache, so changes take effect at once. Only downloads from the hub stay in the cache of
`datasets`.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.tasks.files import find_files, is_saved_dataset
from rl.tasks.readers import FORMATS, Row, format_of, read_file, rows_of_table

__all__ = ["SourceRow", "read_rows"]

logger = logging.getLogger("paceline")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class SourceRow:
    """Row with the unchanged values of its file."""

    values: Row
    number: int
    """Number of the row in its file, from 1."""
    source: str

    @property
    def origin(self) -> str:
        return f"row {self.number} of {self.source}"


def read_rows(path: str, *, subset: str, split: str, key: str) -> list[SourceRow]:
    """Return the rows that a path refers to.

    Args:
        path: a file, a directory, a pattern, or a hub id.
        subset: subset of a hub id that has several.
        split: name of a split, or a slice such as train[:100].
        key: config key that has the path, for messages.

    Raises:
        ValueError: the path refers to nothing, cannot be read, or has no rows.
    """
    name = re.split(r"[\[+]", split)[0]
    try:
        if is_saved_dataset(Path(path)):
            rows = _sliced(_saved_rows(path, split=name), split=split, name=name)
        elif files := find_files(path, split=name):
            rows = _sliced(_file_rows(files, split=name), split=split, name=name)
        else:
            rows = _hub_rows(path, subset=subset, split=split, key=key)
    except ValueError as error:
        if str(error).startswith(key):
            raise
        raise ValueError(f"{key}: {error}") from error
    if not rows:
        raise ValueError(f"{key}={path} must have rows, got none in split {split!r}")
    return rows


def _file_rows(files: list[Path], *, split: str) -> list[SourceRow]:
    rows = []
    for file in files:
        for number, values in enumerate(read_file(file, split=split), start=1):
            rows.append(SourceRow(values, number, str(file)))
    if len(files) > 1:
        shown = ", ".join(file.name for file in files[:3]) + (", ..." if len(files) > 3 else "")
        logger.info("read %d rows of %d files: %s", len(rows), len(files), shown)
    return rows


def _saved_rows(path: str, *, split: str) -> list[SourceRow]:
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(path)
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if isinstance(saved, DatasetDict):
        if split not in saved:
            raise ValueError(f"{path} has no split {split!r}, only {', '.join(map(str, saved))}")
        saved = saved[split]
    return _numbered(saved, source=path)


def _numbered(dataset: Any, *, source: str) -> list[SourceRow]:
    rows = rows_of_table(dataset.with_format("arrow")[:]) if len(dataset) else []
    return [SourceRow(values, number, source) for number, values in enumerate(rows, start=1)]


def _sliced(rows: list[SourceRow], *, split: str, name: str) -> list[SourceRow]:
    """Return the rows of a slice such as train[:100] or train[80%:]."""
    if split == name:
        return rows
    from datasets import ReadInstruction  # takes a second to import

    try:
        parts = ReadInstruction.from_spec(split).to_absolute({name: len(rows)})
    except (AssertionError, ValueError) as error:
        raise ValueError(
            f"the split {split!r} cannot be taken from {len(rows)} rows: {error}"
        ) from error
    return [row for part in parts for row in rows[part.from_ : part.to]]


def _may_be_hub_id(path: str) -> bool:
    """Return whether a path that does not exist locally may be a hub id."""
    is_local = "/" in path and Path(path).parent.is_dir()
    has_ending = format_of(Path(path)) or ("/" not in path and Path(path).suffix)
    return bool(_HUB_ID.fullmatch(path)) and not is_local and not has_ending


def _hub_rows(path: str, *, subset: str, split: str, key: str) -> list[SourceRow]:
    if not _may_be_hub_id(path):
        shown = path if Path(path).is_absolute() or "://" in path else Path.cwd() / path
        raise ValueError(f"{key}: there is no file {shown}")
    from datasets import Dataset, config, load_dataset

    try:
        dataset = load_dataset(path, name=subset or None, split=split)
    except PermissionError as error:
        raise ValueError(
            f"{key}={path} needs a writable directory for the cache of datasets, and "
            f"{config.HF_DATASETS_CACHE} is not writable ({error}); set HF_HOME to another one"
        ) from error
    except (FileNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"{key} must be a file ({', '.join(FORMATS)}, also compressed), a directory or a hub id, got "
            f"{path!r}: {error}"
        ) from error
    except (OSError, ValueError, StopIteration) as error:
        cause = error.__cause__ or error
        raise ValueError(f"{key}={path}, split {split!r}, cannot be read: {cause}") from error
    assert isinstance(dataset, Dataset), f"one split must give a Dataset, got {type(dataset)}"
    return _numbered(dataset, source=f"{path}, split {split}")
