"""What several trainer processes cannot do is refused before they start."""

from dataclasses import replace
from typing import Any

import pytest

from rl.algorithms.grpo import GRPOConfig
from rl.algorithms.ppo import PPOConfig
from rl.algorithms.registry import make_algorithm
from rl.config import RunMode, TrainConfig
from rl.trainer.config import DataParallel, LoRAConfig, OptimizerKind, TrainerConfig
from rl.trainer.ranks.checks import check_ranks
from rollout.config import TINY, Dtype, ModelConfig
from tests.rl.trainer.rank_learners import DDP, FSDP2, ZERO


def config(**changes: Any) -> TrainConfig:
    made = TrainConfig(run_dir="x", model=ModelConfig(path=TINY), algorithm=GRPOConfig())
    return replace(made, **changes)


def check(made: TrainConfig, count: int) -> None:
    algorithm = make_algorithm(made.algorithm, max_tokens=made.sampling.max_tokens)
    check_ranks(made, algorithm.needs, count)


@pytest.mark.parametrize(
    ("changes", "count", "message"),
    [
        (
            {"num_prompts_per_step": 4, "group_size": 2, "trainer": TrainerConfig(steps_per_batch=2)},
            5,
            r"5 processes need a sample each .*, got 2 prompts \(num_prompts_per_step=4 // .*=2\) x group_size=2 = 4 samples",
        ),
        ({"trainer": FSDP2}, 1, r"fsdp2 needs several processes, got 1: set trainer\.num_processes=2"),
        (
            {"trainer": ZERO[2], "algorithm": PPOConfig(num_critic_warmup_steps=3)},
            2,
            r"num_critic_warmup_steps must be 0 .* cannot drop the policy's gradients, got 3",
        ),
        (
            {"trainer": replace(FSDP2, optimizer=OptimizerKind.muon)},
            2,
            r"optimizer=muon needs .* it makes whole matrices orthogonal",
        ),
        ({"trainer": replace(ZERO[3], lora=LoRAConfig(rank=4))}, 2, r"lora\.rank needs .* merged"),
        ({"trainer": replace(ZERO[3], ema_decay=0.9)}, 2, r"ema_decay needs .*=torch: the average is kept"),
        ({"trainer": replace(ZERO[0], offload_optimizer=True)}, 2, r"zero_stage from 1 on, got 0"),
        ({"trainer": replace(DDP, offload_optimizer=True)}, 2, r"needs trainer\.backend=deepspeed"),
        (
            {"trainer": ZERO[0], "model": ModelConfig(path=TINY, dtype=Dtype.bfloat16)},
            2,
            r"zero_stage=0 has no fp32 masters for bfloat16",
        ),
        (
            {"trainer": replace(ZERO[1], data_parallel=DataParallel.fsdp2)},
            2,
            r"deepspeed shards by trainer\.zero_stage",
        ),
        ({"mode": RunMode.rollout_only}, 2, r"trains nothing: start 1 process, got 2"),
        ({"trainer": replace(DDP, num_processes=2)}, 1, r"num_processes must be 1 in a script that trains in 1 process, got 2"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_numbers(changes, count, message):
    with pytest.raises(ValueError, match=message):
        check(config(**changes), count)
