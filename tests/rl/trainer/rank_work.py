"""What ranks do in tests of how they are started. Actors import it by name."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from rl.config import TrainConfig
from rl.trainer.ranks.group import join_ranks
from rl.trainer.ranks.ray_launch import RankError, start_ranks


def failure_of(work: Callable[[TrainConfig], int], config: TrainConfig) -> str:
    """What the first rank is told."""
    try:
        with start_ranks(work, config):
            work(config)
    except RankError as error:
        return str(error)
    return ""


def adds_up(config: TrainConfig) -> int:
    """Each rank leaves a file with what it found."""
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
