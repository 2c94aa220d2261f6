"""Two processes train a critic as one does: gradients, losses, checkpoints."""

from pathlib import Path

import pytest
import torch

from rl.algorithms.ppo import PPOConfig
from rl.trainer.config import TrainerConfig
from rl.trainer.metrics.stopwatch import Stopwatch
from rl.trainer.ranks.group import ALONE, Ranks
from tests.rl.trainer.rank_learners import (
    DDP,
    FSDP2,
    ZERO,
    assert_same_gradients,
    gradient,
    groups,
    learner,
    step_once,
)
from tests.rl.trainer.rank_pool import RankPool


@pytest.mark.parametrize("trainer", [DDP, FSDP2], ids=["ddp", "fsdp2"])
def test_the_critics_gradient_does_not_depend_on_how_many_processes_share_the_samples(
    two_ranks: RankPool, tiny, trainer
):
    algorithm = PPOConfig(num_critic_warmup_steps=0)
    (metrics, state), _ = two_ranks(step_once, tiny, trainer, algorithm, torch.float64)
    truth_metrics, truth = step_once(ALONE, tiny, DDP, algorithm, torch.float64)
    assert_same_gradients(gradient(truth), gradient(state))
    assert_same_gradients(gradient(truth, of="critic"), gradient(state, of="critic"))
    assert metrics["loss/value"] == pytest.approx(truth_metrics["loss/value"], rel=1e-9)


def value_losses(
    ranks: Ranks, tiny: Path, trainer: TrainerConfig, dtype: torch.dtype
) -> list[tuple[float, float]]:
    """Of PPO's ten steps on one batch, with the critic's gradients. The policy learns, too: its old probabilities are asked."""
    made = learner(tiny, ranks, trainer, PPOConfig(critic_learning_rate=1e-2), dtype)
    rows = [made.learn(groups(), step, Stopwatch()).metrics() for step in range(10)]
    return [(row["loss/value"], row["optimizer/critic_grad_norm"]) for row in rows]


@pytest.mark.parametrize(
    "trainer", [FSDP2, *ZERO], ids=["fsdp2", "zero0", "zero1", "zero2", "zero3"]
)
def test_a_critic_learns_in_shards_as_it_does_whole(two_ranks: RankPool, tiny, trainer):
    truth = value_losses(ALONE, tiny, DDP, torch.float32)
    assert truth[9][0] < 0.5 * truth[0][0], "it learns: the curve says something"
    for got in two_ranks(value_losses, tiny, trainer, torch.float32):
        for pair, true_pair in zip(got, truth, strict=True):
            assert pair == pytest.approx(true_pair, rel=1e-3)


def test_in_bf16_a_critic_in_shards_follows_the_curve_of_a_whole_one(two_ranks: RankPool, tiny):
    truth = value_losses(ALONE, tiny, DDP, torch.bfloat16)
    for trainer in (FSDP2, *ZERO[1:]):
        got, _ = two_ranks(value_losses, tiny, trainer, torch.bfloat16)
        for (loss, _), (true_loss, _) in zip(got, truth, strict=True):
            assert loss == pytest.approx(true_loss, rel=5e-2)


def critic_steps(
    ranks: Ranks, tiny: Path, trainer: TrainerConfig, path: Path | None, saved: Path | None
) -> list[float]:
    """Two steps of PPO, from `path`; saved. The critic's losses."""
    made = learner(tiny, ranks, trainer, PPOConfig(critic_learning_rate=1e-2))
    if path is not None:
        made.load_state_dict(torch.load(path, weights_only=True, mmap=True))
    rows = [made.learn(groups(), step, Stopwatch()).metrics() for step in range(2)]
    state = made.state_dict()
    if ranks.is_first and saved is not None:
        torch.save(state, saved)
    return [row["loss/value"] for row in rows]


def test_a_critics_checkpoint_is_gone_on_from_whoever_wrote_it(two_ranks: RankPool, tiny, tmp_path):
    truth_path = tmp_path / "one.pt"
    critic_steps(ALONE, tiny, DDP, None, truth_path)
    truth = critic_steps(ALONE, tiny, DDP, truth_path, None)
    for name, trainer in {"fsdp2": FSDP2, "zero1": ZERO[1], "zero3": ZERO[3]}.items():
        path = tmp_path / f"{name}.pt"
        two_ranks(critic_steps, tiny, trainer, None, path)
        assert critic_steps(ALONE, tiny, DDP, path, None) == pytest.approx(truth, rel=1e-3), name
        for got in two_ranks(critic_steps, tiny, trainer, truth_path, None):
            assert got == pytest.approx(truth, rel=1e-3), name
