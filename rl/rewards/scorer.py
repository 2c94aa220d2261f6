"""What a scorer is, and scorers that users write outside the repository.

A scorer is pickled once and called in a process of its own, so it is a function of an importable module or a
picklable object. It should depend on its arguments alone.
"""

import functools
import inspect
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from rl.user_code import absolute_path, import_named

__all__ = ["ImportedScorer", "PreparedScorer", "Scorer", "load_scorer"]


class Scorer(Protocol):
    """Scores one completion; `row` holds at least `question` and `answer`."""

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

    def prepare(self) -> None:
        _import_function(self.path)

    def __call__(self, completion: str, row: dict[str, Any], /) -> float:
        return _import_function(self.path)(completion, row)


def load_scorer(path: str) -> ImportedScorer:
    """The user's scorer at `path`, after a trial import.

    Raises:
        ValueError: `path` names no function of a completion and a row.
    """
    path = absolute_path(path, key="task.scorer", kind="function")
    scorer = ImportedScorer(path)
    scorer.prepare()
    return scorer


@functools.cache
def _import_function(path: str) -> Scorer:
    function = import_named(path, key="task.scorer", kind="function")
    name = path.rpartition(":")[2]
    if not callable(function):
        raise ValueError(
            f"task.scorer={path}: {name!r} must be callable, got a {type(function).__name__}"
        )
    try:
        inspect.signature(function).bind("completion", {})
    except TypeError as error:
        raise ValueError(
            f"task.scorer={path}: {name!r} must accept (completion: str, row: dict): {error}"
        ) from error
    return function
