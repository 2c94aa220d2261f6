"""Checks of what several trainer processes, or sharded weights, cannot do."""

import importlib.util
from collections.abc import Mapping

import torch

from rl.algorithms.base.algorithm import Needs
from rl.algorithms.registry import make_algorithm
from rl.config import RunMode, TrainConfig
from rl.trainer.config import DataParallel, OptimizerKind, TrainerBackend
from rollout.models.checkpoint import torch_dtype

__all__ = ["check_launch", "check_ranks"]


def check_launch(config: TrainConfig, environment: Mapping[str, str]) -> None:
    """Refuse `trainer.num_processes` where they cannot be started.

    Args:
        config: config of the run.
        environment: variables of this process.

    Raises:
        ValueError: with the key, the rule and the cure.
    """
    count = config.trainer.num_processes
    if count == 1:
        return
    if "WORLD_SIZE" in environment:
        raise ValueError(
            f"trainer.num_processes must be 1 where torchrun starts the processes, got {count} beside its "
            f"{environment['WORLD_SIZE']}; leave out one of the two"
        )
    if importlib.util.find_spec("ray") is None:
        raise ValueError(
            f'trainer.num_processes={count} needs the package ray: pip install "paceline[ray]", or start the '
            f"processes by torchrun --nproc-per-node {count}"
        )
    algorithm = make_algorithm(config.algorithm, max_tokens=config.sampling.max_tokens)
    check_ranks(config, algorithm.needs, count)


def check_ranks(config: TrainConfig, needs: Needs, count: int) -> None:
    """Refuse what `count` trainer processes cannot do.

    Args:
        config: config of the run.
        needs: what its algorithm needs.
        count: trainer processes.

    Raises:
        ValueError: with the keys, the rule and the cure.
    """
    trainer = config.trainer
    if trainer.num_processes not in (1, count):
        raise ValueError(
            f"trainer.num_processes must be 1 in a script that trains in {count} process, got {trainer.num_processes}"
        )
    is_deepspeed = trainer.backend is TrainerBackend.deepspeed
    is_sharded = is_deepspeed or trainer.data_parallel is DataParallel.fsdp2
    if is_deepspeed:
        _check_deepspeed(config, needs)
    elif trainer.offload_optimizer:
        raise ValueError("trainer.offload_optimizer=true needs trainer.backend=deepspeed")
    elif is_sharded and count == 1:
        raise ValueError(
            "trainer.data_parallel=fsdp2 needs several processes, got 1: set trainer.num_processes=2, start "
            "torchrun --nproc-per-node 2 scripts/train.py ..., or leave it at ddp"
        )
    if is_sharded:
        _check_sharded(config)
    if count > 1:
        _check_shares(config, count)


def _check_sharded(config: TrainConfig) -> None:
    """Refuse what only whole copies of the weights can do."""
    trainer = config.trainer
    reasons = {
        "trainer.optimizer=muon": (
            trainer.optimizer is OptimizerKind.muon,
            "it makes whole matrices orthogonal",
        ),
        "trainer.lora.rank": (trainer.lora.rank > 0, "adapters are merged into whole matrices"),
    }
    for key, (is_asked, reason) in reasons.items():
        if is_asked:
            raise ValueError(
                f"{key} needs trainer.backend=torch with trainer.data_parallel=ddp: {reason}"
            )


def _check_deepspeed(config: TrainConfig, needs: Needs) -> None:
    trainer = config.trainer
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            'trainer.backend=deepspeed needs the package deepspeed: pip install "paceline[deepspeed]"'
        )
    if trainer.data_parallel is DataParallel.fsdp2:
        raise ValueError(
            "trainer.data_parallel=fsdp2 is of trainer.backend=torch; deepspeed shards by trainer.zero_stage"
        )
    if trainer.ema_decay > 0:
        raise ValueError(
            "trainer.ema_decay needs trainer.backend=torch: the average is kept beside the masters, which are DeepSpeed's"
        )
    if needs.critic is not None and needs.critic.num_warmup_steps:
        raise ValueError(
            "algorithm.num_critic_warmup_steps must be 0 with trainer.backend=deepspeed, which cannot drop the policy's "
            f"gradients, got {needs.critic.num_warmup_steps}"
        )
    if trainer.offload_optimizer and trainer.zero_stage == 0:
        raise ValueError("trainer.offload_optimizer=true needs trainer.zero_stage from 1 on, got 0")
    if trainer.zero_stage == 0 and torch_dtype(config.model.dtype, "cpu") is torch.bfloat16:
        raise ValueError(
            "trainer.zero_stage=0 has no fp32 masters for bfloat16; take stage 1, or trainer.backend=torch, "
            "whose ranks hold copies too"
        )


def _check_shares(config: TrainConfig, count: int) -> None:
    if config.mode is RunMode.rollout_only:
        raise ValueError(f"mode=rollout_only trains nothing: start 1 process, got {count}")
    steps = config.trainer.steps_per_batch
    num_prompts = config.num_prompts_per_step // steps
    num_samples = num_prompts * config.group_size
    if num_samples < count:
        raise ValueError(
            f"{count} processes need a sample each in every optimiser step, got {num_prompts} prompts "
            f"(num_prompts_per_step={config.num_prompts_per_step} // trainer.steps_per_batch={steps}) x "
            f"group_size={config.group_size} = {num_samples} samples; raise one, or start fewer processes"
        )
