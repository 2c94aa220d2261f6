"""Every config key with its type, default and docstring, as the schemas' sources have them."""

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
    """Type as a reader wants it; an enum's values."""
    default: str
    """Default as a command line would spell it; empty where there is none, or for a section."""
    doc: str
    """Docstring in one line; empty for a section."""
    options: tuple[str, ...]
    """Group options that have the key, where not all have it."""
    is_section: bool
    """Whether other keys are below it."""
    is_free: bool
    """Whether any key may be below it."""


@functools.cache
def all_keys(root: type) -> tuple[Key, ...]:
    """Returns every key of a schema, in the order of the sources, with those of all options of its groups."""
    found: dict[str, Key] = {}
    for key in _walk(root, prefix=""):
        found.setdefault(key.name, key)
    return tuple(found.values())


def known_keys(root: type) -> list[str]:
    """Returns the dotted name of every key of a schema, sections included, sorted."""
    return sorted(key.name for key in all_keys(root))


def free_keys(root: type) -> tuple[str, ...]:
    """Returns the keys below which any key may stand, such as another library's parameters."""
    return tuple(key.name for key in all_keys(root) if key.is_free)


def suggest(key: str, root: type) -> str:
    """Returns `; did you mean ...?` with the nearest keys, or where to look."""
    known = known_keys(root)
    if key in RENAMED and RENAMED[key] in known:
        return f"; it is called {RENAMED[key]} now"
    near = difflib.get_close_matches(key, known, n=2, cutoff=0.7)
    # the right name under the wrong parent, or a wrong name under the right one
    leaf = key.rpartition(".")[2]
    near += [k for k in known if k.rpartition(".")[2] == leaf and k not in near][:2]
    if not near:
        return "; --keys lists all keys"
    return f"; did you mean {' or '.join(near)}?"


def options_with(key: str) -> list[str]:
    """Returns the options of a group whose schema has `key`, as `group=option`; empty for keys of no group."""
    group, _, leaf = key.partition(".")
    _, options = GROUPS.get(group, (object, {}))
    return [
        f"{group}={name}"
        for name, schema in options.items()
        if leaf.partition(".")[0] in {field.name for field in fields(schema)}
    ]


@functools.cache
def field_docs(schema: type) -> Mapping[str, str]:
    """Returns the docstring of each field of a dataclass, from its source and those of its bases."""
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
    """Returns a value as a command line would spell it."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(spell(item) for item in value)}]"
    return repr(value) if isinstance(value, str) else str(value)
