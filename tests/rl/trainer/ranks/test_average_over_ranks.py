"""Two processes keep the average of the weights that one does."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from rl.algorithms.sft import SFTConfig
from rl.trainer.config import TrainerConfig
from rl.trainer.metrics.stopwatch import Stopwatch
from rl.trainer.ranks.group import ALONE, Ranks
from tests.rl.trainer.rank_learners import DDP, FSDP2, groups, learner
from tests.rl.trainer.rank_pool import RankPool


def average_after_steps(
    ranks: Ranks, tiny: Path, trainer: TrainerConfig, path: Path, saved: Path | None
) -> None:
    """Three steps, from `saved` if it is given; the weights and their average, written to `path`."""
    made = learner(tiny, ranks, replace(trainer, ema_decay=0.9), SFTConfig())
    if saved is not None:
        made.load_state_dict(torch.load(saved / "state.pt", weights_only=True))
    for step in range(3):
        made.learn(groups(), step, Stopwatch())
    directory = path if ranks.is_first else None
    if directory is not None:
        shutil.copytree(tiny, directory)
    before = {name: t.clone() for name, t in made.named_weights()}
    made.write_beside(directory)
    after = [t.clone() for _, t in made.named_weights()]
    assert all(map(torch.equal, before.values(), after)), "the weights are what they were"
    state = made.state_dict()
    if directory is not None:
        average = average_in(directory)
        lag = max(float((before[name] - tensor).abs().max()) for name, tensor in average.items())
        assert lag > 1e-3, "the average lags behind"
        torch.save(state, directory / "state.pt")


def average_in(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "ema" / "model.safetensors")


def test_the_average_of_weights_in_shards_is_that_of_whole_ones(
    two_ranks: RankPool, tiny, tmp_path
):
    average_after_steps(ALONE, tiny, DDP, tmp_path / "truth", None)
    average_after_steps(ALONE, tiny, DDP, tmp_path / "next", tmp_path / "truth")
    for name, trainer in (("ddp", DDP), ("fsdp2", FSDP2)):
        two_ranks(average_after_steps, tiny, trainer, tmp_path / name, None)
        two_ranks(average_after_steps, tiny, trainer, tmp_path / f"{name}_next", tmp_path / name)
        for path, true_path in ((name, "truth"), (f"{name}_next", "next")):
            truth = average_in(tmp_path / true_path)
            for key, tensor in average_in(tmp_path / path).items():
                torch.testing.assert_close(tensor, truth[key], rtol=1e-3, atol=1e-4)
    first, second = average_in(tmp_path / "truth"), average_in(tmp_path / "next")
    assert max(float((second[k] - t).abs().max()) for k, t in first.items()) > 1e-3, "it moves"
