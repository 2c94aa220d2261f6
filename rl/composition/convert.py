"""Conversion of Hydra's composed node to plain dataclasses."""

import math
import types
import typing
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from rl.composition.keys import suggest

__all__ = ["to_config"]

Config = TypeVar("Config")


def to_config(cfg: DictConfig, root: type[Config]) -> Config:
    """Convert a composed node to dataclasses, which check ranges in `__post_init__`.

    Args:
        cfg: composed node.
        root: schema of the primary config.

    Raises:
        ValueError: a key is unknown, which gives suggestions; a value is out of range or missing; or the primary
            config is not based on the schema.
    """
    unknown = list(_unknown_keys(cfg, root, prefix=""))
    if unknown:
        # the schema accepts `+key=value`, but to_object would silently drop the key
        hints = "; ".join(f"unknown config key {key}{suggest(key, root)}" for key in unknown)
        raise ValueError(hints)
    missing = sorted(str(key) for key in OmegaConf.missing_keys(cfg))
    if missing:
        raise ValueError(
            f"config keys without a value: {', '.join(missing)}; set them, {missing[0]}=..."
        )
    endless = [key for key, value in _numbers(cfg) if not math.isfinite(value)]
    if endless:
        raise ValueError(
            f"{endless[0]} must be a finite number, got {OmegaConf.select(cfg, endless[0])}"
        )
    config = OmegaConf.to_object(cfg)
    if not isinstance(config, root):
        raise ValueError(
            "a primary config must begin its list of defaults with a schema, or with a config that has one, such as train; "
            "without it the types of its keys are unknown"
        )
    return config


def _numbers(node: DictConfig, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the floats of a node and of the nodes in it, with their keys."""
    for key in node:
        value = None if OmegaConf.is_missing(node, key) else node[key]
        if isinstance(value, DictConfig):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            yield f"{prefix}{key}", value


def _unknown_keys(node: DictConfig, schema: type, *, prefix: str) -> Iterator[str]:
    hints = typing.get_type_hints(schema)
    for key in node:
        name = f"{prefix}{key}"
        if str(key) not in hints:
            yield name
            continue
        child = None if OmegaConf.is_missing(node, key) else node[key]
        kind = _class_of(child, hints[str(key)])
        if isinstance(child, DictConfig) and kind is not None:
            yield from _unknown_keys(child, kind, prefix=f"{name}.")


def _class_of(child: Any, hint: Any) -> type | None:
    """Return the dataclass of a node; None for values and free mappings."""
    kind = OmegaConf.get_type(child) if isinstance(child, DictConfig) else None
    if isinstance(kind, type) and is_dataclass(kind):
        return kind
    is_plain = isinstance(hint, types.GenericAlias) or not is_dataclass(hint)
    return None if is_plain else hint
