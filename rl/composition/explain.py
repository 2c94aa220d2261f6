"""Explanations of a config: the help page, the list of keys, and a composed config with its docs."""

import textwrap
from collections.abc import Iterator
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from rl.composition.command_line import FLAGS
from rl.composition.keys import Key, all_keys, field_docs
from rl.composition.tree import CONF, groups, options

__all__ = ["documented_yaml", "help_page", "list_of_keys"]

_WIDTH = 100


def help_page(config_name: str, root: type) -> str:
    """Return the help page: the purpose of a script, its commands, groups, keys and flags.

    Args:
        config_name: primary config of the script; the comment at the top of its file describes the script.
        root: schema of the primary config.
    """
    lines = (CONF / f"{config_name}.yaml").read_text(encoding="utf-8").splitlines()
    head = [line.removeprefix("#").removeprefix(" ") for line in lines if line.startswith("#")]
    roots = {key.name for key in all_keys(root)}
    used = [
        g for g in groups() if g in roots or (g in ("experiment", "debug") and "trainer" in roots)
    ]
    page = [*head, "", "Groups: group=option"]
    page += _column([(group, ", ".join(options(group))) for group in used])
    sections = [key.name for key in all_keys(root) if "." not in key.name]
    page += ["", "Keys: key=value; --keys explains them, --keys trainer only those of trainer"]
    page += textwrap.wrap(", ".join(sections), _WIDTH, initial_indent="  ", subsequent_indent="  ")
    page += [
        "",
        "Text in double quotes is read as in YAML: 'sampling.stop=[\"\\n\"]' is a newline; in single quotes it stays as it is.",
    ]
    page += ["", "Flags"]
    page += _column([(", ".join(names), text) for *names, text in FLAGS])
    return "\n".join(page) + "\n"


def list_of_keys(root: type, pattern: str) -> str:
    """Return keys with type, default and description.

    Args:
        root: schema of the primary config.
        pattern: part of the names of the keys; empty: all keys.

    Raises:
        ValueError: no key matches.
    """
    found = [key for key in all_keys(root) if pattern in key.name and not key.is_section]
    if not found:
        raise ValueError(f"no key's name contains {pattern!r}; --keys lists all")
    return "\n".join(line for key in found for line in _entry(key)) + "\n"


def documented_yaml(cfg: DictConfig, root: type, *, resolve: bool = False) -> str:
    """Return a composed config as YAML, with the docstring of each key above it.

    Args:
        cfg: composed config.
        root: schema of the primary config.
        resolve: whether to replace interpolations by their values.
    """
    plain = OmegaConf.to_container(cfg, resolve=resolve, enum_to_str=True)
    return "\n".join(_yaml_lines(plain, cfg, root, indent="")) + "\n"


def _yaml_lines(plain: Any, node: DictConfig, schema: type, *, indent: str) -> Iterator[str]:
    docs = field_docs(schema)
    for key, value in plain.items():
        prefix = f"{indent}# "
        yield from textwrap.wrap(
            docs.get(key, ""), _WIDTH, initial_indent=prefix, subsequent_indent=prefix
        )
        child = node._get_node(key)
        kind = OmegaConf.get_type(child) if isinstance(child, DictConfig) else None
        if kind not in (None, dict) and isinstance(child, DictConfig) and isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _yaml_lines(value, child, kind, indent=f"{indent}  ")
        else:
            # in a list, because YAML dumps a single scalar with an end-of-document mark
            text = yaml.safe_dump(
                [value], default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False
            )
            yield f"{indent}{key}: {text.strip()[1:-1]}"


def _entry(key: Key) -> Iterator[str]:
    default = f" = {key.default}" if key.default else ""
    owners = f"  ({', '.join(key.options)})" if key.options else ""
    yield f"{key.name}: {key.type}{default}{owners}"
    yield from textwrap.wrap(key.doc, _WIDTH, initial_indent="    ", subsequent_indent="    ")


def _column(rows: list[tuple[str, str]]) -> Iterator[str]:
    width = max((len(name) for name, _ in rows), default=0) + 2
    for name, text in rows:
        first, rest = f"  {name:{width}}", " " * (width + 2)
        yield from textwrap.wrap(
            text, _WIDTH + 10, initial_indent=first, subsequent_indent=rest
        ) or [first]
