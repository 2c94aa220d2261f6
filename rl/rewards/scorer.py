"""What a scorer is, and scorers that users write outside the repository.

A scorer is pickled once and called in a process of its own, so it is a function of an importable module or a
picklable object. It should depend on its arguments alone.
"""

import functools
import importlib
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

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
    location, colon, name = path.rpartition(":")
    if not (location and colon and name):
        raise ValueError(
            "task.scorer must be `package.module:function` or `path/to/file.py:function`, "
            f"got {path!r}"
        )
    if location.endswith(".py"):
        path = f"{Path(location).resolve()}:{name}"  # its processes may start in another directory
    scorer = ImportedScorer(path)
    scorer.prepare()
    return scorer


@functools.cache
def _import_function(path: str) -> Scorer:
    location, _, name = path.rpartition(":")
    try:
        if location.endswith(".py"):
            module = _import_file(Path(location))
        else:
            module = importlib.import_module(location)
    except ImportError as error:
        raise ValueError(f"task.scorer={path}: {location} cannot be imported: {error}") from error
    if not hasattr(module, name):
        raise ValueError(
            f"task.scorer={path}: {location} has no {name!r}; it has {_functions(module)}"
        )
    function = getattr(module, name)
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


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ImportError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"scorer_{path.stem}", path)
    assert spec is not None, f"no loader for {path}"
    assert spec.loader is not None, f"no loader for {path}"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def _functions(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items() if inspect.isfunction(value)]
    return ", ".join(names) or "no functions"
