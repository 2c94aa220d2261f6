"""Checks that span several parts of a config, made before any work is lost."""

import importlib.util
import logging
from collections.abc import Sequence

import torch

from rl.algorithm_config import DAPOConfig, KLEstimator, KLPlacement, PPOConfig, RatioBase
from rl.config import DataParallel, RunMode, TrainConfig, TrainerBackend, WandbMode
from rollout.models.checkpoint import torch_dtype

__all__ = ["check_config", "check_prompts", "check_ranks"]

logger = logging.getLogger("paceline")


def check_config(config: TrainConfig) -> None:
    """Refuse what cannot train.

    Raises:
        ValueError: with the keys, the rule and the cure.
    """
    sampling = config.sampling
    if sampling.temperature == 0:
        raise ValueError(
            "sampling.temperature must be > 0 in training, got 0: siblings would all be the same"
        )
    if sampling.top_k or sampling.top_p < 1 or sampling.min_p:
        raise ValueError(
            "sampling.top_k, top_p and min_p must be off (0, 1, 0) in training, got "
            f"{sampling.top_k}, {sampling.top_p}, {sampling.min_p}: the log-probabilities would be of "
            "another distribution than the trainer's"
        )
    _check_algorithm(config)
    mode = config.tracking.wandb.mode
    if mode is not WandbMode.DISABLED and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"tracking.wandb.mode={mode.name} needs the package wandb: "
            'pip install "paceline[wandb]", or set tracking.wandb.mode=DISABLED'
        )
    if config.resume_from and config.mode is not RunMode.FULL:
        raise ValueError(f"resume_from needs mode=FULL, got {config.mode.name}")


def _check_algorithm(config: TrainConfig) -> None:
    algorithm, correction = config.algorithm, config.correction
    if algorithm.ratio_base is RatioBase.ROLLOUT and correction.max_importance_weight:
        raise ValueError(
            "correction.max_importance_weight must be 0 when algorithm.ratio_base=ROLLOUT, got "
            f"{correction.max_importance_weight:g}: a ratio to the engine's probabilities carries the mismatch "
            "already, and weights would count it twice; vetoes (max_mean_log_ratio, max_sample_k3) stay possible"
        )
    is_in_loss = algorithm.kl_coef > 0 and algorithm.kl_placement is KLPlacement.LOSS
    if is_in_loss and algorithm.kl_estimator is KLEstimator.K1:
        logger.warning(
            "algorithm.kl_estimator=K1 has a gradient of zero on average as a loss, and only adds noise; take "
            "K2 or K3, or algorithm.kl_placement=REWARD"
        )
    if isinstance(algorithm, DAPOConfig):
        limit = config.sampling.max_tokens
        if algorithm.num_overlong_tokens > limit:
            raise ValueError(
                f"algorithm.num_overlong_tokens must be <= sampling.max_tokens ({limit}), got "
                f"{algorithm.num_overlong_tokens}"
            )


def check_ranks(config: TrainConfig, count: int) -> None:
    """Refuse what `count` trainer processes cannot do.

    Raises:
        ValueError: with the keys, the rule and the cure.
    """
    trainer = config.trainer
    is_deepspeed = trainer.backend is TrainerBackend.DEEPSPEED
    is_sharded = is_deepspeed or trainer.data_parallel is DataParallel.FSDP2
    if is_deepspeed:
        _check_deepspeed(config)
    elif trainer.offload_optimizer:
        raise ValueError("trainer.offload_optimizer=true needs trainer.backend=DEEPSPEED")
    elif is_sharded and count == 1:
        raise ValueError(
            "trainer.data_parallel=FSDP2 needs several processes, got 1: torchrun --nproc-per-node 2 "
            "scripts/train.py ..., or leave it at DDP"
        )
    if is_sharded and isinstance(config.algorithm, PPOConfig):
        raise ValueError(
            "algorithm=ppo needs trainer.backend=TORCH with trainer.data_parallel=DDP: its critic is not sharded"
        )
    if count > 1:
        _check_shares(config, count)


def _check_deepspeed(config: TrainConfig) -> None:
    trainer = config.trainer
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            'trainer.backend=DEEPSPEED needs the package deepspeed: pip install "paceline[deepspeed]"'
        )
    if trainer.data_parallel is DataParallel.FSDP2:
        raise ValueError(
            "trainer.data_parallel=FSDP2 is of trainer.backend=TORCH; DEEPSPEED shards by trainer.zero_stage"
        )
    if trainer.offload_optimizer and trainer.zero_stage == 0:
        raise ValueError("trainer.offload_optimizer=true needs trainer.zero_stage from 1 on, got 0")
    if trainer.zero_stage == 0 and torch_dtype(config.model.dtype, "cpu") is torch.bfloat16:
        raise ValueError(
            "trainer.zero_stage=0 has no fp32 masters for bfloat16; take stage 1, or trainer.backend=TORCH, "
            "whose ranks hold copies too"
        )


def _check_shares(config: TrainConfig, count: int) -> None:
    if config.mode is RunMode.ROLLOUT_ONLY:
        raise ValueError(f"mode=ROLLOUT_ONLY trains nothing: start 1 process, got {count}")
    steps = config.trainer.steps_per_batch
    num_prompts = config.num_prompts_per_step // steps
    num_samples = num_prompts * config.group_size
    if num_samples < count:
        raise ValueError(
            f"{count} processes need a sample each in every optimiser step, got {num_prompts} prompts "
            f"(num_prompts_per_step={config.num_prompts_per_step} // trainer.steps_per_batch={steps}) x "
            f"group_size={config.group_size} = {num_samples} samples; raise one, or start fewer processes"
        )


def check_prompts(
    config: TrainConfig, lengths: Sequence[int], *, max_context_tokens: int, what: str
) -> None:
    """Refuse prompts that leave no room for a completion, or make samples that fit no micro-batch.

    Args:
        config: of the run.
        lengths: tokens of each prompt.
        max_context_tokens: of the engine and the model, whichever is less.
        what: the prompts' name in the error.

    Raises:
        ValueError: with the longest prompt.
    """
    longest = max(lengths)
    if longest >= max_context_tokens:
        raise ValueError(
            f"the longest of the {what} prompts has {longest} tokens (prompt {lengths.index(longest)}), and the "
            f"context holds {max_context_tokens} with its completion; raise engine.max_context_tokens if the model "
            "allows it, or leave the prompt out"
        )
    sample = min(longest + config.sampling.max_tokens, max_context_tokens)
    budget = config.trainer.max_tokens_per_micro_batch
    if sample > budget:
        raise ValueError(
            f"trainer.max_tokens_per_micro_batch must hold the longest sample, {longest} prompt tokens and "
            f"{sample - longest} of completion, got {budget}"
        )
