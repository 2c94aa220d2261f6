"""Checks of all runs that a command line asks for, before the first one begins."""

import os
from collections.abc import Sequence
from pathlib import Path

from rl.composition.command_line import CommandLine
from rl.composition.convert import to_config
from rl.composition.escapes import quoted
from rl.composition.sentences import in_one_sentence
from rl.composition.sweeps import check_directories, runs_of
from rl.composition.tree import composed

__all__ = ["checked_runs"]

_SWEEPS = "outputs/sweeps/${now:%Y-%m-%d}/${now:%H-%M-%S}"


def checked_runs(
    config_name: str, overrides: Sequence[str], root: type, line: CommandLine
) -> tuple[list[list[str]], list[str]]:
    """Compose and check every run.

    Args:
        config_name: name of the primary config.
        overrides: overrides of the command line.
        root: schema of the primary config.
        line: command line. If it only shows information, mandatory values may be missing.

    Returns:
        Overrides of each run of a sweep, and overrides that set the directory of the sweep's own file.

    Raises:
        ValueError: a key or option is unknown, a value has the wrong type or is out of range, or runs share a
            directory.
    """
    with in_one_sentence(root):
        if not line.is_sweep:
            cfg = composed(config_name, overrides)
            if line.is_run:
                to_config(cfg, root)  # pyrefly: ignore
            return [], []
        runs = runs_of(overrides)
        if not runs and not any(override.startswith("hydra/sweeper=") for override in overrides):
            raise ValueError("the sweep has no runs: a glob(...) in it matches nothing")
        configs = [to_config(composed(config_name, run), root) for run in runs]  # pyrefly: ignore
    directories = [getattr(config, "run_dir", "") for config in configs]
    if not directories or not all(directories):
        return runs, [f"hydra.sweep.dir={_SWEEPS}"]
    check_directories(directories, runs)
    parents = [str(Path(directory).parent) for directory in directories]
    return runs, [f"hydra.sweep.dir={quoted(os.path.commonpath(parents))}"]
