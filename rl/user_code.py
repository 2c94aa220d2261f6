"""Import of functions and classes that users write outside this repository."""

import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

__all__ = ["absolute_path", "folder_of", "import_named", "importable"]


def absolute_path(path: str, *, key: str, kind: Literal["function", "class"]) -> str:
    """Return `path` with its file made absolute, so that it is also valid in a process with another working
    directory.

    Args:
        path: `package.module:name`, or `path/to/file.py:name`.
        key: config key that `path` comes from, for messages.
        kind: kind of object that `name` refers to.

    Raises:
        ValueError: `path` has another form.
    """
    location, colon, name = path.rpartition(":")
    if not (location and colon and name):
        raise ValueError(
            f"{key} must be `package.module:{kind}` or `path/to/file.py:{kind}`, got {path!r}"
        )
    return f"{Path(location).resolve()}:{name}" if location.endswith(".py") else path


def folder_of(path: str) -> str:
    """Return the directory whose modules the code at `path` may import: that of its file, or the working
    directory."""
    location = path.rpartition(":")[0]
    return str(Path(location).parent) if location.endswith(".py") else os.getcwd()


@contextmanager
def importable(folder: str) -> Iterator[None]:
    """Make the files of a folder importable until the block ends."""
    if not folder or folder in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)


@functools.cache
def import_named(path: str, *, key: str, kind: Literal["function", "class"]) -> Any:
    """Import the function or class at `path`; see `absolute_path` for its forms.

    Raises:
        ValueError: the module cannot be imported, or has no such name.
    """
    location, _, name = path.rpartition(":")
    try:
        if location.endswith(".py"):
            module = _import_file(Path(location))
        else:
            module = importlib.import_module(location)
    except ImportError as error:
        raise ValueError(f"{key}={path}: {location} cannot be imported: {error}") from error
    except Exception as error:  # code of the user may raise any error
        kind_of_error = type(error).__name__
        raise ValueError(
            f"{key}={path}: {location} raises {kind_of_error} when it is imported: {error}"
        ) from error
    if not hasattr(module, name):
        raise ValueError(f"{key}={path}: {location} has no {name!r}; it has {_names(module, kind)}")
    return getattr(module, name)


@functools.cache
def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ImportError(f"there is no file {path}")
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"{path.stem}_{digest}", path)
    assert spec is not None, f"no loader for {path}"
    assert spec.loader is not None, f"no loader for {path}"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module in sys.modules
    spec.loader.exec_module(module)
    return module


def _names(module: ModuleType, kind: Literal["function", "class"]) -> str:
    is_kind = inspect.isfunction if kind == "function" else inspect.isclass
    names = [name for name, value in vars(module).items() if is_kind(value)]
    return ", ".join(names) or ("no functions" if kind == "function" else "no classes")
