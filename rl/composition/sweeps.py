"""Sweeps of runs: their overrides, and a directory for each run, named after its differences."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from rl.composition.tree import composing

__all__ = ["check_directories", "name_of", "place_run", "runs_of"]

_MAX_NAME = 160


def runs_of(overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each run of a sweep; empty if another sweeper decides them later.

    Raises:
        HydraException: an override cannot be parsed.
    """
    if any(override.startswith("hydra/sweeper=") for override in overrides):
        return []
    with composing():
        loader = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [list(run) for batch in batches for run in batch]


def name_of(run: Sequence[str], sweep: Sequence[str], *, without: Sequence[str] = ()) -> str:
    """Return a directory name that describes how a run differs from the others of its sweep.

    Args:
        run: overrides of the run.
        sweep: overrides of the sweep, as given; a key with a single value does not differ between runs.
        without: keys to leave out.
    """
    parser = OverridesParser.create()
    fixed = {
        o.key_or_group for o in parser.parse_overrides(list(sweep)) if not o.is_sweep_override()
    }
    differing = [override.lstrip("+").partition("=")[::2] for override in run]
    pairs = [(key, value) for key, value in differing if key not in {*fixed, *without}]
    leaves = Counter(key.rpartition(".")[2] for key, _ in pairs)
    names = []
    for key, value in pairs:
        leaf = key.rpartition(".")[2]
        names.append(f"{leaf if leaves[leaf] == 1 else key}={value}")
    return re.sub(r"[^\w=.,+-]+", "_", ",".join(names))[:_MAX_NAME]


def place_run(cfg: DictConfig, run: Sequence[str], sweep: Sequence[str], directory: Path) -> str:
    """Set the directory of a run of a sweep and its group in W&B, unless the user set them.

    Args:
        cfg: composed config of the run, which is changed.
        run: overrides of the run.
        sweep: overrides of the sweep.
        directory: directory of the sweep.

    Returns:
        The name of the run, which describes how it differs from the others.
    """
    name = name_of(run, sweep) or "run"
    if "run_dir" in cfg and not cfg.run_dir:
        cfg.run_dir = str(directory / name)
    wandb = OmegaConf.select(cfg, "tracking.wandb")
    if wandb is not None and not wandb.group and not os.environ.get("WANDB_RUN_GROUP"):
        wandb.group = name_of(run, sweep, without=["seed"]) or directory.name
    return name


def check_directories(directories: Sequence[str], runs: Sequence[Sequence[str]]) -> None:
    """Raise a ValueError if two runs of a sweep would share a directory.

    Args:
        directories: run directory of each run.
        runs: overrides of each run.

    Raises:
        ValueError: two runs share a directory; the message names it, the number of runs, and the cure.
    """
    counts = Counter(str(Path(directory)) for directory in directories)
    directory, count = counts.most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"{count} of {len(runs)} runs of the sweep have the same directory, {directory}; leave run_dir out, or name "
            "in it what differs, for example run_dir=outputs/sweep_${seed}"
        )
