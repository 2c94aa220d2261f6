"""Functions that ranks run in tests of starting ranks. Actors import it by name."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from rl.config import TrainConfig
from rl.trainer.ranks.group import join_ranks
from rl.trainer.ranks.ray_launch import RankError, start_ranks


def failure_of(work: Callable[[TrainConfig], int], config: TrainConfig) -> str:
    """Run `work` on all ranks; return the message of the first rank's `RankError`, empty without one."""
    try:
        with start_ranks(work, config):
            work(config)
    except RankError as error:
        return str(error)
    return ""


def adds_up(config: TrainConfig) -> int:
    """Sum the ranks; each rank writes the total and its number of threads to a file."""
    with join_ranks("cpu") as ranks:
        total = torch.tensor([ranks.rank + 1.0])
        ranks.all_reduce([total])
        found = (
            f"{ranks.rank} of {ranks.count}: {total.item():g}, {torch.get_num_threads()} threads"
        )
        Path(config.run_dir, str(ranks.rank)).write_text(found)
        ranks.gather(None)
    return 0


def fails_before_it_joins(config: TrainConfig) -> int:
    if os.environ["RANK"] == "2":
        raise OSError("no route to host")
    return adds_up(config)


def dies_before_it_joins(config: TrainConfig) -> int:
    if os.environ["RANK"] == "2":
        os._exit(3)
    return adds_up(config)


def fails_among_the_others(config: TrainConfig) -> int:
    with join_ranks("cpu") as ranks:
        if ranks.rank == 2:
            raise FloatingPointError("planted")
        ranks.gather(None)
    return 0


def dies_among_the_others(config: TrainConfig) -> int:
    with join_ranks("cpu") as ranks:
        if ranks.rank == 2:
            os._exit(3)
        ranks.gather(None)
    return 0
