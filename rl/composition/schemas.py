"""Schemas of the primary configs, and of the groups whose options have different keys, registered with Hydra."""

from collections.abc import Mapping
from types import MappingProxyType

from hydra.core.config_store import ConfigStore

from rl.algorithms.base.config import AlgorithmConfig
from rl.algorithms.registry import ALGORITHMS
from rl.config import EvaluateConfig, GenerateConfig, TrainConfig
from rl.tasks.config import ArithmeticConfig, DatasetConfig, ReasoningGymConfig, TaskConfig
from rl.tracking.config import ReportConfig
from rollout.config import FleetConfig, RayFleetConfig

__all__ = ["GROUPS", "RENAMED", "ROOTS", "register_schemas"]

ROOTS: Mapping[str, type] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
    "report": ReportConfig,
}
"""Schema of each primary config, by its name in conf/."""
RENAMED: Mapping[str, str] = {
    "algorithm.max_refills": "algorithm.max_resample_batches",
    "model.source": "model.path",
    "fleet.kind": "fleet",
}
"""Current name of each renamed key, by its old name."""
_TASKS: Mapping[str, type[TaskConfig]] = {
    "arithmetic": ArithmeticConfig,
    "reasoning_gym": ReasoningGymConfig,
    "dataset": DatasetConfig,
}
_FLEETS: Mapping[str, type[FleetConfig]] = {"inline": FleetConfig, "ray": RayFleetConfig}
GROUPS: Mapping[str, tuple[type, Mapping[str, type]]] = {
    "algorithm": (AlgorithmConfig, {name: entry.schema for name, entry in ALGORITHMS.items()}),
    "task": (TaskConfig, _TASKS),
    "fleet": (FleetConfig, _FLEETS),
}
"""Groups with a schema per option: the base type of all options, and the schema of each."""


def register_schemas(others: Mapping[str, type] = MappingProxyType({})) -> None:
    """Register the schemas with Hydra; conf/ refers to them as `<name>_schema`.

    Args:
        others: schemas of primary configs that are not in `ROOTS`, by the name of their YAML file.
    """
    store = ConfigStore.instance()
    for name, root in {**ROOTS, **others}.items():
        store.store(name=f"{name}_schema", node=root)
    for group, (_, options) in GROUPS.items():
        for name, schema in options.items():
            store.store(group=group, name=f"{name}_schema", node=schema)
