"""Contract of scorers, and the loading of scorers that users write outside the repository.

A scorer is pickled once and called in another process. It is therefore a function of an importable module, or a
picklable object. Its score should depend only on its arguments. `rl.rewards.binding` documents which arguments it may
take.
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
    """Function that scores one completion. `row` has the dataset's columns, and always `question` and `answer`."""

    def __call__(self, completion: str, row: dict[str, Any], /) -> float: ...


@runtime_checkable
class PreparedScorer(Protocol):
    """Scorer that loads data first: `prepare` runs once per process, outside the time limit."""

    def prepare(self) -> None: ...


@dataclass(frozen=True)
class ImportedScorer:
    """User's function, stored as its import path and imported in the scorer's process."""

    path: str
    """Import path: `package.module:function`, or `/path/to/file.py:function`."""
    folder: str = field(default="", compare=False)
    """Directory whose modules can be imported: that of the file, or the one in which training was started."""

    def prepare(self) -> None:
        """Import the function, and make the modules of `folder` importable."""
        if self.folder and self.folder not in sys.path:
            sys.path.insert(0, self.folder)
        _ = self.function

    @property
    def function(self) -> Callable[..., Any]:
        """Imported function of the user."""
        with importable(self.folder):
            function = import_named(self.path, key="task.scorer", kind="function")
        if not callable(function):
            name = self.path.rpartition(":")[2]
            raise ValueError(
                f"task.scorer={self.path}: {name!r} must be callable, got a {type(function).__name__}"
            )
        return function

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise a ValueError if a parameter is neither a known name nor one of the dataset's columns."""
        try:
            bind_scorer(self.function).check_columns(columns)
        except ValueError as error:
            raise ValueError(f"task.scorer={self.path}: {error}") from error

    def __call__(self, completion: str, row: dict[str, Any], /) -> Any:
        return bind_scorer(self.function)(ScoreJob(completion=completion, row=row))


def load_scorer(path: str) -> ImportedScorer:
    """Return the user's scorer at `path`, after importing it once to check it.

    Raises:
        ValueError: `path` names no function, or one whose parameters cannot be bound.
    """
    path = absolute_path(path, key="task.scorer", kind="function")
    scorer = ImportedScorer(path, folder_of(path))
    function = scorer.function
    try:
        bind_scorer(function)
    except ValueError as error:
        raise ValueError(f"task.scorer={path}: {error}") from error
    return scorer
