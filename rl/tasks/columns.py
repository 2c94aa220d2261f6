"""Access to columns of a row by name; dots reach into structs and lists: `reward_model.ground_truth`, `answers.0`.

A column whose own name contains the dot takes precedence.
"""

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["describe_columns", "reach"]

_MAX_NAMES = 30


def reach(row: Any, name: str) -> Any:
    """Return the value that a name refers to; None if the row lacks it.

    Raises:
        LookupError: the name reaches into a value that has no fields.
    """
    if isinstance(row, Mapping):
        if name in row:
            return row[name]
        for head, rest in _partings(name):
            if head in row:
                return reach(row[head], rest)
        return None
    if isinstance(row, (list, tuple)):
        head, _, rest = name.partition(".")
        if not head.isdecimal():
            raise LookupError(f"{head!r} is not a position in a list, which are numbers from 0")
        if int(head) >= len(row):
            return None
        return reach(row[int(head)], rest) if rest else row[int(head)]
    if row is None:
        return None
    raise LookupError(f"{name!r} reaches into a {type(row).__name__}, which has no fields")


def describe_columns(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the names of all columns and of the fields of structs, for messages."""
    names: dict[str, None] = {}
    for row in rows:
        for name, value in row.items():
            names[name] = None
            if isinstance(value, Mapping):
                names |= {f"{name}.{field}": None for field in value}
    shown = list(names)[:_MAX_NAMES]
    return ", ".join(shown) + (
        f" and {len(names) - len(shown)} more" if names.keys() - shown else ""
    )


def _partings(name: str) -> list[tuple[str, str]]:
    """Return the ways to split a name at a dot, the longest head first."""
    dots = [index for index, character in enumerate(name) if character == "."]
    return [(name[:dot], name[dot + 1 :]) for dot in reversed(dots)]
