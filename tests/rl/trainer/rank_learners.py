"""Learners for tests of several trainer processes: the tiny model on three groups, sharded or replicated."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rl.algorithms.base.config import AlgorithmConfig, CorrectionConfig
from rl.algorithms.registry import make_algorithm
from rl.config import TrainConfig
from rl.rollouts import RolloutGroup
from rl.trainer.config import DataParallel, TrainerBackend, TrainerConfig
from rl.trainer.learn.build import make_learner
from rl.trainer.learn.learner import Learner
from rl.trainer.metrics.stopwatch import Stopwatch
from rl.trainer.ranks.group import Ranks
from rollout.config import TINY, ModelConfig, SamplingConfig
from tests.rl.trainer.rollout_factory import group, rollout

DDP = TrainerConfig()
FSDP2 = TrainerConfig(data_parallel=DataParallel.fsdp2)
ZERO = [TrainerConfig(backend=TrainerBackend.deepspeed, zero_stage=stage) for stage in range(4)]
OFFLOAD = replace(ZERO[2], offload_optimizer=True)


def groups(num_groups: int = 3) -> list[RolloutGroup]:
    """Prompts and completions of uneven lengths; the second group scored the same throughout, the last lost a sibling.
    With 180 rows in a micro-batch one rank needs more of them than the other."""
    made = []
    for g in range(num_groups):
        rewards = [[1.0, 0.0, 0.5], [0.3, 0.3, 0.3], [0.0, None, 1.0]][g]
        made.append(
            group(
                *[
                    rollout(
                        [5 + g, 6, *range(40, 40 + 30 * g)],
                        [9 + i, *range(60, 60 + 13 * (i + 1) * (3 - g))],
                        group_id=g,
                        sample_index=i,
                        reward=rewards[i],
                        logprob=-5.5 - 0.2 * i,
                    )
                    for i in range(3)
                ]
            )
        )
    return made


def learner(
    tiny: Path,
    ranks: Ranks,
    trainer: TrainerConfig,
    algorithm: AlgorithmConfig,
    dtype: torch.dtype = torch.float32,
) -> Learner:
    config = TrainConfig(
        run_dir="x",
        model=ModelConfig(path=TINY),
        algorithm=algorithm,
        trainer=replace(
            trainer, max_tokens_per_micro_batch=180, learning_rate=1e-2, max_grad_norm=1e9
        ),
        sampling=SamplingConfig(max_tokens=64),
        # it trains on one batch again and again
        correction=CorrectionConfig(warn_k3=0.0, stop_k3=0.0),
    )
    return make_learner(
        config,
        make_algorithm(algorithm, max_tokens=64),
        source=tiny,
        weights=tiny,
        dtype=dtype,
        ranks=ranks,
    )


def moments(state: dict[str, Any]) -> dict[int, dict[str, torch.Tensor]]:
    return state["optimizer"]["adamw"]["state"]


def gradient(state: dict[str, Any], *, of: str = "policy") -> list[torch.Tensor]:
    """Return the gradients of the only step so far, from AdamW's first moment, (1 - beta1) g."""
    if of == "critic":
        state = state["critic"]
    own = moments(state)
    return [own[i]["exp_avg"] / (1 - DDP.adam_beta1) for i in sorted(own)]


def step_once(
    ranks: Ranks, tiny: Path, trainer: TrainerConfig, algorithm: AlgorithmConfig, dtype: torch.dtype
) -> tuple[dict[str, float], dict[str, Any]]:
    made = learner(tiny, ranks, trainer, algorithm, dtype)
    metrics = made.learn(groups(), 0, Stopwatch()).metrics()
    # copies: tensors go to another process in shared memory
    return metrics, copy.deepcopy(made.state_dict())


def assert_same_gradients(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    assert sum(float(g.abs().sum()) for g in first) > 0
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)
