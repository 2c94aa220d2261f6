"""What a scorer is, and scorers that users write outside the repository.

A scorer is pickled once and called in a process of its own, so it is a function of an importable module or a
picklable object. It should depend on its arguments alone. `rl.rewards.binding` says which arguments it may have.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from rl.rewards.binding import bind_scorer
from rl.rewards.job import ScoreJob
from rl.user_code import absolute_path, folder_of, import_named, importable

__all__ = ["ImportedScorer", "PreparedScorer", "Scorer", "load_scorer"]


class Scorer(Protocol):
    """Scores one completion; `row` holds the dataset's columns, and `question` and `answer` in any case."""

    def __call__(self, completion: str, row: dict[str, Any], /) -> float: ...


@runtime_checkable
class PreparedScorer(Protocol):
    """A scorer that loads something first: `prepare` runs once per process, outside the time limit."""

    def prepare(self) -> None: ...


@dataclass(frozen=True)
class ImportedScorer:
    """A user's function, known by its import path and imported in the process that scores."""

    path: str
    """`package.module:function`, or `/path/to/file.py:function`."""
    folder: str = field(default="", compare=False)
    """Directory whose modules can be imported: the file's own, or the one in which training started."""

    def prepare(self) -> None:
        """Import the function; files of `folder` can be imported from now on."""
        if self.folder and self.folder not in sys.path:
            sys.path.insert(0, self.folder)
        _ = self.function

    @property
    def function(self) -> Callable[..., Any]:
        """The user's function, imported."""
        with importable(self.folder):
            function = import_named(self.path, key="task.scorer", kind="function")
        if not callable(function):
            name = self.path.rpartition(":")[2]
            raise ValueError(
                f"task.scorer={self.path}: {name!r} must be callable, got a {type(function).__name__}"
            )
        return function

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raises a ValueError if a parameter is neither one that we know nor one of the dataset's columns."""
        try:
            bind_scorer(self.function).check_columns(columns)
        except ValueError as error:
            raise ValueError(f"task.scorer={self.path}: {error}") from error

    def __call__(self, completion: str, row: dict[str, Any], /) -> Any:
        return bind_scorer(self.function)(ScoreJob(completion=completion, row=row))


def load_scorer(path: str) -> ImportedScorer:
    """Returns the user's scorer at `path`, after a trial import.

    Raises:
        ValueError: `path` names no function, or one whose parameters cannot be given.
    """
    path = absolute_path(path, key="task.scorer", kind="function")
    scorer = ImportedScorer(path, folder_of(path))
    function = scorer.function
    try:
        bind_scorer(function)
    except ValueError as error:
        raise ValueError(f"task.scorer={path}: {error}") from error
    return scorer
