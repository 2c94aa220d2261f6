"""Finished or running runs on disk: where they are, which of them repeat each other, and what the others differ in."""

import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rl.tracking.events import read_events
from rl.tracking.plotting import Rows

__all__ = ["RunSet", "find_runs", "group_runs"]

_NOT_COMPARED = ("run_dir", "seed", "resume_from", "tracking")
"""Keys in which runs may differ without being different experiments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSet:
    """Runs of one experiment: one run, or several that differ only in their seed."""

    name: str
    paths: tuple[Path, ...]

    def events(self) -> list[Rows]:
        """The rows of events.jsonl of each run."""
        return [read_events(path / "events.jsonl") for path in self.paths]


def find_runs(patterns: Sequence[str]) -> list[Path]:
    """Run directories, each once, in the order given.

    Args:
        patterns: run directories, directories with runs somewhere below, or globs of either. A path that exists is taken as
            it is, also with brackets in its name.

    Raises:
        ValueError: a pattern that leads to no run.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        paths = [Path(pattern)] if Path(pattern).exists() else map(Path, sorted(glob.glob(pattern)))
        runs = [run for path in paths for run in _runs_below(path)]
        if not runs:
            raise ValueError(
                f"runs must lead to run directories, which hold an events.jsonl; found none at {pattern!r}"
            )
        found |= dict.fromkeys(runs)
    return list(found)


def group_runs(paths: Sequence[Path], *, group_seeds: bool, names: Sequence[str]) -> list[RunSet]:
    """The curves of a comparison.

    Args:
        paths: run directories.
        group_seeds: make one set of the runs that differ only in their seed.
        names: one per set, in the order of their first runs; empty: what the sets differ in.

    Raises:
        ValueError: not as many names as sets.
    """
    configs = {path: _flat_config(path) for path in paths}
    sets: dict[str, list[Path]] = {}
    for path, config in configs.items():
        is_alone = config is None or not group_seeds
        sets.setdefault(str(path) if is_alone else json.dumps(config, sort_keys=True), []).append(
            path
        )
    members = list(sets.values())
    if names and len(names) != len(members):
        raise ValueError(
            f"names must be {len(members)} different names, one per curve, got {list(names)}; "
            f"the curves are {[' + '.join(map(str, runs)) for runs in members]}"
        )
    own = names or _own_names(members, configs)
    return [RunSet(name=n, paths=tuple(runs)) for n, runs in zip(own, members, strict=True)]


def _runs_below(path: Path) -> Iterator[Path]:
    if (path / "events.jsonl").is_file():
        yield path
    elif path.is_dir():
        yield from sorted(events.parent for events in path.rglob("events.jsonl"))


def _own_names(
    sets: Sequence[Sequence[Path]], configs: Mapping[Path, Mapping[str, Any] | None]
) -> list[str]:
    """Return the keys in which the configs differ, or else the part of the directories that differs."""
    firsts = [configs[runs[0]] or {} for runs in sets]
    keys = sorted({key for config in firsts for key in config})
    differing = [key for key in keys if len({repr(config.get(key)) for config in firsts}) > 1]
    by_config = [
        ", ".join(f"{key.rpartition('.')[2]}={config[key]}" for key in differing if key in config)
        for config in firsts
    ]
    if 0 < len(differing) <= 3 and len(set(by_config)) == len(sets):
        return by_config
    directories = [runs[0] for runs in sets]
    depth = 1
    while len({path.parts[-depth:] for path in directories}) < len(directories):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in directories]


def _flat_config(run: Path) -> dict[str, Any] | None:
    """Dotted keys of a run's config.yaml, without those that are not compared; None where there is no such file."""
    path = run / "config.yaml"
    if not path.is_file():
        return None
    flat = dict(_leaves(yaml.safe_load(path.read_text(encoding="utf-8")) or {}, prefix=""))
    return {key: value for key, value in flat.items() if key.partition(".")[0] not in _NOT_COMPARED}


def _leaves(node: Mapping[str, Any], *, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, prefix=f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
