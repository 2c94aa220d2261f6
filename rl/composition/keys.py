"""List of all config keys with type, default and docstring, read from the source of the schemas."""

import ast
import difflib
import functools
import inspect
import itertools
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

from rl.composition.schemas import GROUPS, RENAMED

__all__ = ["Key", "all_keys", "field_docs", "free_keys", "known_keys", "options_with", "suggest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of a schema."""

    name: str
    """Dotted name, for example `trainer.learning_rate`."""
    type: str
    """Type for readers; for an enum, its values."""
    default: str
    """Default in the form of a command line; empty for a section, or if there is none."""
    doc: str
    """Docstring in one line; empty for a section."""
    options: tuple[str, ...]
    """Group options that have the key; empty if all have it."""
    is_section: bool
    """Whether the key contains other keys."""
    is_free: bool
    """Whether the key may contain any keys."""


@functools.cache
def all_keys(root: type) -> tuple[Key, ...]:
    """Return every key of a schema, in the order of the sources, including those of all options of its groups."""
    found: dict[str, Key] = {}
    for key in _walk(root, prefix=""):
        found.setdefault(key.name, key)
    return tuple(found.values())


def known_keys(root: type) -> list[str]:
    """Return the dotted names of all keys of a schema, sections included, sorted."""
    return sorted(key.name for key in all_keys(root))


def free_keys(root: type) -> tuple[str, ...]:
    """Return the keys that may contain any keys, such as the parameters of another library."""
    return tuple(key.name for key in all_keys(root) if key.is_free)


def suggest(key: str, root: type) -> str:
    """Return `; did you mean ...?` with the nearest keys, or a hint how to list them."""
    known = known_keys(root)
    if key in RENAMED and RENAMED[key] in known:
        return f"; it was renamed to {RENAMED[key]}"
    near = difflib.get_close_matches(key, known, n=2, cutoff=0.7)
    # either the right name under the wrong parent, or a wrong name under the right parent
    leaf = key.rpartition(".")[2]
    near += [k for k in known if k.rpartition(".")[2] == leaf and k not in near][:2]
    if not near:
        return "; --keys lists all keys"
    return f"; did you mean {' or '.join(near)}?"


def options_with(key: str) -> list[str]:
    """Return the options of a group whose schema has `key`, as `group=option`; empty for keys outside such a
    group."""
    group, _, leaf = key.partition(".")
    _, options = GROUPS.get(group, (object, {}))
    return [
        f"{group}={name}"
        for name, schema in options.items()
        if leaf.partition(".")[0] in {field.name for field in fields(schema)}
    ]


@functools.cache
def field_docs(schema: type) -> Mapping[str, str]:
    """Return the docstring of each field of a dataclass, from its source and that of its bases."""
    docs: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if is_dataclass(base):
            docs |= _own_docs(base)
    return docs


def _own_docs(schema: type) -> dict[str, str]:
    tree = ast.parse(inspect.cleandoc(inspect.getsource(schema)))
    body = typing.cast("ast.ClassDef", tree.body[0]).body
    docs = {}
    for statement, following in itertools.pairwise(body):
        is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if isinstance(statement, ast.AnnAssign) and is_text:
            name = ast.unparse(statement.target)
            docs[name] = " ".join(str(following.value.value).split())  # pyrefly: ignore
    return docs


def _walk(schema: type, *, prefix: str) -> Iterator[Key]:
    options = next((options for base, options in GROUPS.values() if base is schema), {})
    for variant in (schema, *options.values()):
        hints = typing.get_type_hints(variant)
        for field in fields(variant):
            name, hint = prefix + field.name, hints[field.name]
            is_section = isinstance(hint, type) and is_dataclass(hint)
            owners = options_with(name) if options else []
            yield Key(
                name=name,
                type="" if is_section else _type_text(hint),
                default="" if is_section else _default_text(field),
                doc="" if is_section else field_docs(variant).get(field.name, ""),
                options=() if len(owners) == len(options) else tuple(owners),
                is_section=is_section,
                is_free=typing.get_origin(hint) is dict,
            )
            if is_section:
                yield from _walk(typing.cast("type", hint), prefix=f"{name}.")


def _type_text(hint: Any) -> str:
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " | ".join(member.name for member in hint)
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is list:
        return f"list of {_type_text(arguments[0])}"
    if typing.get_origin(hint) is dict:
        return "mapping"
    if type(None) in arguments:
        return " | ".join(_type_text(a) for a in arguments if a is not type(None)) + " | null"
    return getattr(hint, "__name__", str(hint))


def _default_text(field: Any) -> str:
    has_factory = field.default_factory is not MISSING
    value = field.default_factory() if has_factory else field.default
    return "" if value is MISSING or value == "???" else spell(value)


def spell(value: Any) -> str:
    """Return a value in the form of a command line."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(spell(item) for item in value)}]"
    return repr(value) if isinstance(value, str) else str(value)
