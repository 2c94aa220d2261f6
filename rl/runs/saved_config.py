"""Saved config of a run, in a form that Hydra can compose again, and the runs and scripts that start from it.

    train      resume_from=<run>            the run's config, in the run's directory; the command line may override it
    evaluate   model.path=<run or weights>  the run's task, prompts, greedy sampling, engine, limits of scorers
    generate   model.path=<run or weights>  the run's prompts, sampling, engine; copied weights: only prompts and
    sampling

The saved config becomes a primary config of Hydra, with an option `saved` in each group. Overrides therefore have
their usual meaning: `key=value` changes a key, `group=option` replaces a group, and `experiment=...` applies on top.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rl.composition.command_line import CommandLine
from rl.composition.schemas import register_schemas
from rl.config import EvaluateConfig, GenerateConfig, TrainConfig
from rl.runs.directory import run_dir_of
from rl.tasks.config import TaskConfig
from rl.tracking.plain import plain_data
from rl.version import commit, version
from rollout.models.json_file import read_json

__all__ = [
    "base_on_run",
    "changed_keys",
    "option_names",
    "read_config",
    "save_config",
    "task_config_of",
]

_SAVED = "saved"
_FORM = ("system_prompt", "user_prompt", "reply_prefix")
"""Keys of the texts around a question."""


def save_config(config: TrainConfig, path: Path) -> None:
    """Write every key, and the schemas of the groups, so that `--config-dir=<run> --config-name=config` composes them
    again.

    A comment at the top names the chosen options and the version of the project.
    """
    defaults = [{group: schema} for group, schema in _schemas_of(config).items()]
    node = {
        "defaults": ["train_schema", *defaults, "_self_"],
        **_plain(config),
    }
    names = ", ".join(f"{group}={name}" for group, name in sorted(option_names(config).items()))
    made_by = f"paceline {version()}" + (f", commit {commit()}" if commit() else "")
    path.write_text(
        f"# {names}; {made_by}\n{OmegaConf.to_yaml(OmegaConf.create(node))}", encoding="utf-8"
    )


def option_names(config: TrainConfig) -> dict[str, str]:
    """Return the option of a run in each group that has a schema per option, such as {"algorithm": "ppo"}."""
    return {group: schema.removesuffix("_schema") for group, schema in _schemas_of(config).items()}


def read_config(run_dir: Path) -> dict[str, Any] | None:
    """Return the content of a run's config.yaml; None if there is no such file, or one without schemas.

    Raises:
        ValueError: the file is not YAML.
    """
    return _read(run_dir / "config.yaml")


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        saved = OmegaConf.to_container(OmegaConf.load(path))
    except (OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(saved, dict) or "defaults" not in saved:
        return None
    return {str(key): value for key, value in saved.items()}


def base_on_run(config_name: str, line: CommandLine) -> tuple[str, list[str]]:
    """Return the primary config to compose and the overrides, for a command line that may name a run.

    Args:
        config_name: primary config of the script.
        line: command line; `--config-name` may name another primary config, such as a run's.

    Raises:
        ValueError: the run's config.yaml cannot be read.
    """
    arguments = list(line.overrides)
    if line.config_name:
        return _base_on_file(line), arguments
    key = {"train": "resume_from", "evaluate": "model.path", "generate": "model.path"}.get(
        config_name
    )
    value = _value_of(key, arguments) if key else None
    if not value:
        return config_name, arguments
    run_dir = Path(value) if key == "resume_from" else run_dir_of(value)
    saved = read_config(run_dir) if run_dir else None
    if saved is not None:
        schemas = _groups(saved)
        del saved["defaults"]
        saved |= {"run_dir": str(run_dir), "resume_from": str(run_dir)}
        node = _node_for(config_name, saved)
    elif config_name == "generate" and (Path(value) / "prompt.json").is_file():
        schemas, node = {}, _published_node(Path(value))
    else:
        return config_name, arguments
    if key == "model.path":
        arguments = [argument for argument in arguments if argument != "model=hf"]
    return _store(config_name, node, schemas), arguments


def _base_on_file(line: CommandLine) -> str:
    """Return the primary config that `--config-name` names. The config.yaml of a run starts a new run in a new
    directory."""
    for directory in line.config_dirs:
        path = directory / f"{line.config_name}.yaml"
        saved = _read(path)
        if saved is None or "train_schema" not in saved["defaults"] or "run_dir" not in saved:
            continue
        schemas = _groups(saved)
        del saved["defaults"]
        return _store("train", {**saved, "run_dir": "", "resume_from": ""}, schemas)
    return line.config_name


def _node_for(config_name: str, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a run's config that a script uses."""
    if config_name == "train":
        return dict(saved)
    is_evaluation = config_name == "evaluate"
    node = _of_schema(saved, EvaluateConfig if is_evaluation else GenerateConfig)
    # the path of the weights is the one on the command line
    node["model"] = {key: value for key, value in saved["model"].items() if key != "path"}
    if is_evaluation:
        node["sampling"] = {**saved["sampling"], "temperature": 0.0}
    else:
        node |= {key: saved["task"][key] for key in _FORM}
    return node


def _published_node(directory: Path) -> dict[str, Any]:
    """Return the config for `generate` from published weights outside their run, read from their files for
    servers."""
    prompt = read_json(directory / "prompt.json")
    generation = read_json(directory / "generation_config.json")
    sampling = {
        "temperature": generation["temperature"] if generation.get("do_sample") else 0.0,
        "max_tokens": generation["max_new_tokens"],
        "stop": prompt["stop"],
        **{key: generation[key] for key in ("top_k", "top_p", "min_p") if key in generation},
    }
    model = {"chat_template_kwargs": prompt["chat_template_kwargs"]}
    node = {"model": model, "sampling": sampling, **{key: prompt[key] for key in _FORM}}
    return _escaped(node)


def changed_keys(saved: Mapping[str, Any], config: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ from those of a run's saved config, with both values.

    Args:
        saved: result of `read_config`.
        config: config to compare with it.
    """
    before, now = dict(_flat(saved)), dict(_flat(_plain(config)))
    schemas = _groups(saved)
    changed: dict[str, tuple[Any, Any]] = {
        group: (schemas[group].removesuffix("_schema"), name)
        for group, name in option_names(config).items()
        if schemas.get(group, f"{name}_schema") != f"{name}_schema"
    }
    for key, value in now.items():
        is_own = key in ("run_dir", "resume_from") or key.partition(".")[0] in changed
        if not is_own and key in before and before[key] != value:
            changed[key] = (before[key], value)
    return changed


def task_config_of(saved: Mapping[str, Any]) -> TaskConfig:
    """Return the task of a run's saved config."""
    register_schemas()
    options = ConfigStore.instance().repo["task"]
    schema = options[f"{_groups(saved)['task']}.yaml"].node
    task = OmegaConf.to_object(OmegaConf.merge(schema, saved["task"]))
    assert isinstance(task, TaskConfig), "schemas of the group say so"
    return task


def _groups(saved: Mapping[str, Any]) -> dict[str, str]:
    """Return the schema of each group, from a saved config's list of defaults."""
    entries = [entry for entry in saved["defaults"] if isinstance(entry, Mapping)]
    pairs = [(group, schema) for entry in entries for group, schema in entry.items()]
    return {group: schema for group, schema in pairs if not group.startswith("override")}


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif key != "defaults":
            yield f"{prefix}{key}", value


def _of_schema(saved: Mapping[str, Any], schema: type) -> dict[str, Any]:
    """Return the keys of a run's config that another script has as well."""
    return {f.name: saved[f.name] for f in fields(schema) if f.name in saved}


def _store(config_name: str, node: dict[str, Any], schemas: Mapping[str, str]) -> str:
    """Register a run's config with Hydra; return the name of the primary config."""
    store = ConfigStore.instance()
    groups: list[Any] = []
    for group in ("model", "task", "algorithm", "fleet"):
        if group not in node:
            continue
        defaults = [schemas[group], "_self_"] if group in schemas else ["_self_"]
        store.store(group=group, name=_SAVED, node={"defaults": defaults, **node.pop(group)})
        groups.append({group: _SAVED})
    if config_name == "train":
        groups += [{"experiment": None}, {"debug": None}]
    defaults = [f"{config_name}_schema", "_self_", *groups]
    name = f"{config_name}_{_SAVED}"
    store.store(name=name, node={"defaults": defaults, **node})
    return name


def _value_of(key: str, arguments: Sequence[str]) -> str | None:
    """Return the value that a command line sets a key to; None if it sets none, or one that cannot be parsed."""
    given = [a for a in arguments if a.lstrip("+").partition("=")[0] == key]
    if not given:
        return None
    try:
        override = OverridesParser.create().parse_override(given[-1])
    except HydraException:  # the composition reports it
        return None
    value = override.value()
    return value if isinstance(value, str) else None


def _schemas_of(config: TrainConfig) -> dict[str, str]:
    """Return Hydra's name of the schema of each group that has a schema per option."""
    register_schemas()
    names = {}
    for group, options in ConfigStore.instance().repo.items():
        if not isinstance(options, dict) or not hasattr(config, group):
            continue
        kind = type(getattr(config, group))
        for file_name, entry in options.items():
            is_schema = file_name.endswith("_schema.yaml")
            if is_schema and OmegaConf.get_type(entry.node) is kind:
                names[group] = file_name.removesuffix(".yaml")
    return names


def _plain(config: TrainConfig) -> dict[str, Any]:
    """Return every key as in a YAML file of Hydra: enum members by name, and `${` in a text escaped."""
    return _escaped(plain_data(asdict(config)))


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: f"{match[1] * 2}\\${{", value)
    return value
