"""From Hydra's composed node to plain dataclasses. Nothing below sees OmegaConf."""

import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from rl.algorithms.base.config import AlgorithmConfig
from rl.algorithms.registry import ALGORITHMS
from rl.config import EvaluateConfig, GenerateConfig, TrainConfig
from rl.tasks.config import ArithmeticConfig, DatasetConfig, ReasoningGymConfig, TaskConfig
from rl.tracking.config import ReportConfig
from rollout.config import FleetConfig, RayFleetConfig

__all__ = ["known_keys", "options_with", "register_schemas", "suggest", "to_config"]

Config = TypeVar("Config")

ROOTS: Mapping[str, type] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
    "report": ReportConfig,
}
_RENAMED = {
    "algorithm.max_refills": "algorithm.max_resample_batches",
    "model.source": "model.path",
}
"""Old names of keys."""
TASKS: Mapping[str, type[TaskConfig]] = {
    "arithmetic": ArithmeticConfig,
    "reasoning_gym": ReasoningGymConfig,
    "dataset": DatasetConfig,
}
FLEETS: Mapping[str, type[FleetConfig]] = {"inline": FleetConfig, "ray": RayFleetConfig}
_GROUPS: Mapping[str, tuple[type, Mapping[str, type]]] = {
    "algorithm": (AlgorithmConfig, {name: entry.schema for name, entry in ALGORITHMS.items()}),
    "task": (TaskConfig, TASKS),
    "fleet": (FleetConfig, FLEETS),
}
"""Groups with a schema per option: the type that the options share, and the schema of each."""
_VARIANTS = {base: tuple(options.values()) for base, options in _GROUPS.values()}


def register_schemas(others: Mapping[str, type] = MappingProxyType({})) -> None:
    """Make the schemas known to Hydra; conf/ refers to them as `<name>_schema`.

    Args:
        others: schemas of primary configs beyond `ROOTS`, by the name of their YAML file.
    """
    store = ConfigStore.instance()
    for name, root in {**ROOTS, **others}.items():
        store.store(name=f"{name}_schema", node=root)
    for group, (_, options) in _GROUPS.items():
        for name, schema in options.items():
            store.store(group=group, name=f"{name}_schema", node=schema)


def to_config(cfg: DictConfig, root: type[Config]) -> Config:
    """Composed node -> dataclasses, whose `__post_init__` has checked every range.

    Raises:
        ValueError: unknown keys, with suggestions; a value out of range; a mandatory value missing.
    """
    unknown = list(_unknown_keys(cfg, root, prefix=""))
    if unknown:
        # `+key=value` passes the schema, and to_object then drops the key without a word
        hints = "; ".join(f"unknown config key {key}{suggest(key, root)}" for key in unknown)
        raise ValueError(hints)
    missing = sorted(str(key) for key in OmegaConf.missing_keys(cfg))
    if missing:
        raise ValueError(
            f"config keys without a value: {', '.join(missing)}; set them, {missing[0]}=..."
        )
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, root), "the primary config names this schema first"
    return config


def known_keys(root: type) -> list[str]:
    """Every dotted key of a schema, those of all variants of its groups included."""
    return sorted(set(_keys(root, prefix="")))


def suggest(key: str, root: type) -> str:
    """`; did you mean ...?` with the nearest keys, or where to look."""
    known = known_keys(root)
    if key in _RENAMED and _RENAMED[key] in known:
        return f"; it is called {_RENAMED[key]} now"
    near = difflib.get_close_matches(key, known, n=2, cutoff=0.7)
    # the right name under the wrong parent, or a wrong name under the right one
    leaf = key.rpartition(".")[2]
    near += [k for k in known if k.rpartition(".")[2] == leaf and k not in near][:2]
    if not near:
        return "; --cfg job lists all keys"
    return f"; did you mean {' or '.join(near)}?"


def options_with(key: str) -> list[str]:
    """Returns the options of a group whose schema has `key`, as `group=option`; empty for keys of no group."""
    group, _, leaf = key.partition(".")
    _, options = _GROUPS.get(group, (object, {}))
    return [
        f"{group}={name}"
        for name, schema in options.items()
        if leaf.partition(".")[0] in {field.name for field in fields(schema)}
    ]


def _keys(schema: type, *, prefix: str) -> Iterator[str]:
    for variant in (schema, *_VARIANTS.get(schema, ())):
        hints = typing.get_type_hints(variant)
        for field in fields(variant):
            yield prefix + field.name
            if isinstance(hints[field.name], type) and is_dataclass(hints[field.name]):
                yield from _keys(hints[field.name], prefix=f"{prefix}{field.name}.")


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
    """The dataclass a node stands for; None for values and free-form mappings."""
    kind = OmegaConf.get_type(child) if isinstance(child, DictConfig) else None
    if isinstance(kind, type) and is_dataclass(kind):
        return kind
    is_plain = isinstance(hint, types.GenericAlias) or not is_dataclass(hint)
    return None if is_plain else hint
