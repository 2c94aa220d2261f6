"""Parsing of a command line into flags and overrides of config keys."""

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from rl.composition.escapes import read_escapes
from rl.composition.keys import free_keys, known_keys, suggest
from rl.composition.tree import groups

__all__ = ["CommandLine", "check_override_keys", "read_command_line"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """Parsed command line."""

    overrides: tuple[str, ...]
    """Overrides `key=value` and `group=option`. Escapes in quoted text are already replaced."""
    config_dirs: tuple[Path, ...]
    """Directories with the user's own YAML files."""
    config_name: str
    """Name of the primary config; empty: that of the script."""
    hydra_flags: tuple[str, ...]
    """Flags that are passed on to Hydra."""
    is_sweep: bool
    """Whether the command line asks for several runs."""
    wants_help: bool
    wants_version: bool
    keys_pattern: str | None
    """Part of the names of keys to explain; None: no explanation is asked for."""
    shows_config: bool
    """Whether to show the composed config instead of running it."""

    @property
    def is_run(self) -> bool:
        """True if a run starts; most flags of Hydra only show information."""
        return self.is_sweep or self.hydra_flags in ((), ("--run",))


class _Parser(argparse.ArgumentParser):
    """Parser that raises a ValueError where argparse would print the usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"command line: {message}; --help says more")


def read_command_line(arguments: Sequence[str]) -> CommandLine:
    """Parse a command line.

    Raises:
        ValueError: a flag is unknown or has no value, or an escape is invalid.
    """
    parser = _parser()
    found, unknown = parser.parse_known_intermixed_args(list(arguments))
    if unknown:
        raise ValueError(_about_flag(unknown[0], parser))
    flags: list[str] = []
    for flag in ("run", "multirun", "resolve", "hydra_help", "shell_completion"):
        flags += [f"--{flag.replace('_', '-')}"] if getattr(found, flag) else []
    for flag in ("cfg", "package", "info", "experimental_rerun"):
        value = getattr(found, flag)
        flags += [f"--{flag.replace('_', '-')}", value] if value is not None else []
    return CommandLine(
        overrides=tuple(read_escapes(override) for override in found.overrides),
        config_dirs=tuple(Path(directory) for directory in found.config_dir),
        config_name=found.config_name.removesuffix(".yaml"),
        hydra_flags=tuple(flags),
        is_sweep=found.multirun,
        wants_help=found.help,
        wants_version=found.version,
        keys_pattern=found.keys,
        shows_config=found.cfg == "job" and found.package is None,
    )


def check_override_keys(overrides: Sequence[str], root: type) -> list[str]:
    """Raise a ValueError for overrides of unknown keys; return the overrides in Hydra's form.

    Args:
        overrides: overrides `key=value` and `group=option`.
        root: schema of the primary config.

    Raises:
        ValueError: a key is unknown, which gives a suggestion, or an override has no value.
    """
    known, free, known_groups = set(known_keys(root)), free_keys(root), groups()
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise ValueError(f"overrides must be key=value or group=option, got {override!r}")
        key = _key_of(override)
        is_known = key in known or key.partition(".")[0] == "hydra" or _is_free(key, free)
        if not is_known and key.partition("/")[0] not in (*known_groups, "hydra"):
            raise ValueError(f"unknown config key {key}{suggest(key, root)}")
    # Hydra adds a key that is in no schema only with `++`
    return [
        f"++{override}" if _is_free(override.partition("=")[0], free) else override
        for override in overrides
    ]


def _key_of(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def _is_free(key: str, free: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in free)


def _about_flag(flag: str, parser: argparse.ArgumentParser) -> str:
    name, equals, _ = flag.partition("=")
    if equals and "." in name:
        return f"unknown flag {name}; write config keys without dashes: {flag.lstrip('-')}"
    known = [option for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"unknown flag {name}; " + (f"did you mean {near[0]}?" if near else "--help lists all")


def _parser() -> argparse.ArgumentParser:
    """Build a parser of the flags of Hydra 1.3 and of `--keys`; flags may stand between overrides."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    for *names, _ in FLAGS:
        match names[0]:
            case "--cfg":
                parser.add_argument(*names, choices=["job", "hydra", "all"])
            case "--info":
                choices = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
                parser.add_argument(*names, nargs="?", const="all", choices=choices)
            case "--keys":
                parser.add_argument(*names, nargs="?", const="")
            case "--config-dir":
                parser.add_argument(*names, action="append", default=[])
            case "--config-name":
                parser.add_argument(*names, default="")
            case "--package" | "--experimental-rerun":
                parser.add_argument(*names)
            case _:
                parser.add_argument(*names, action="store_true")
    return parser


FLAGS: tuple[tuple[str, ...], ...] = (
    ("--help", "-h", "this page"),
    (
        "--keys",
        "[TEXT]: every key, or those whose name contains TEXT, with type, default and meaning",
    ),
    ("--cfg", "-c", "job: the composed config with its docs, without a run"),
    ("--resolve", "with --cfg: interpolations replaced by their values"),
    ("--package", "-p", "with --cfg: only this part of the config"),
    (
        "--config-dir",
        "-cd",
        "DIR: your own experiments, tasks and other groups; searched before conf/",
    ),
    (
        "--config-name",
        "-cn",
        "NAME: another primary config, such as a finished run's: --config-dir=<run> --config-name=config",
    ),
    ("--multirun", "-m", "a sweep: every combination of values that are separated by commas"),
    ("--run", "-r", "one run (the default)"),
    (
        "--info",
        "-i",
        "where the config comes from: all, config, defaults, defaults-tree, plugins or searchpath",
    ),
    ("--hydra-help", "Hydra's own help"),
    ("--shell-completion", "-sc", "install or remove completion for a shell"),
    ("--experimental-rerun", "repeat a run from a config that Hydra pickled"),
    ("--version", "version of Paceline, and its commit"),
)
"""Names and description of each flag."""
