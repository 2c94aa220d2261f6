"""Checks that involve several parts of a config, made before any work is done."""

import importlib.util
import logging

from rl.algorithms.base.algorithm import Needs
from rl.algorithms.base.config import KLEstimator, KLPlacement, RatioBase
from rl.config import RunMode, TrainConfig
from rl.tracking.config import WandbMode
from rl.tracking.wandb_run.identity import wandb_mode
from rl.trainer.collect.encoded_prompts import EncodedPrompts
from rl.trainer.config import OptimizerKind, TrainerBackend, TrainerConfig
from rollout.config import RayFleetConfig

__all__ = ["check_budget", "check_config", "check_context"]

logger = logging.getLogger("paceline")


def check_config(config: TrainConfig, needs: Needs) -> None:
    """Raise a ValueError if a config cannot train, and log warnings about doubtful settings.

    Args:
        config: config of the run.
        needs: needs of its algorithm.

    Raises:
        ValueError: keys contradict each other; the message has the keys, the rule and the cure.
    """
    sampling = config.sampling
    if sampling.temperature == 0:
        raise ValueError(
            "sampling.temperature must be > 0 in training, got 0: all rollouts of a prompt would be the same"
        )
    if sampling.top_k or sampling.top_p < 1 or sampling.min_p:
        raise ValueError(
            "sampling.top_k, top_p and min_p must be off (0, 1, 0) in training, got "
            f"{sampling.top_k}, {sampling.top_p}, {sampling.min_p}: the engine would sample from another "
            "distribution than the trainer computes"
        )
    _check_unread_keys(config)
    _check_algorithm(config)
    _check_spare_rollouts(config, needs)
    mode = wandb_mode(config.tracking.wandb)
    if mode is not WandbMode.disabled and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"tracking.wandb.mode={mode.name} needs the package wandb: "
            'pip install "paceline[wandb]", or set tracking.wandb.mode=disabled'
        )
    if config.resume_from and config.mode is not RunMode.full:
        raise ValueError(f"resume_from needs mode=full, got {config.mode.name}")


def _check_unread_keys(config: TrainConfig) -> None:
    """Raise a ValueError if a key is set that has no effect in this run."""
    trainer, default = config.trainer, TrainerConfig()
    is_on_ray = trainer.num_processes > 1 or isinstance(config.fleet, RayFleetConfig)
    unread = {
        "trainer.zero_stage": (
            trainer.zero_stage != default.zero_stage
            and trainer.backend is not TrainerBackend.deepspeed,
            "trainer.backend=deepspeed",
        ),
        "trainer.muon_momentum": (
            trainer.muon_momentum != default.muon_momentum
            and trainer.optimizer is not OptimizerKind.muon,
            "trainer.optimizer=muon",
        ),
        "trainer.threads_per_process": (
            trainer.threads_per_process != default.threads_per_process
            and trainer.num_processes == 1,
            "trainer.num_processes above 1",
        ),
        "fleet.address": (
            bool(config.fleet.address) and not is_on_ray,
            "fleet=ray or trainer.num_processes above 1",
        ),
    }
    for key, (is_unread, needed) in unread.items():
        if is_unread:
            raise ValueError(f"{key} is set, but has no effect without {needed}")


def _check_spare_rollouts(config: TrainConfig, needs: Needs) -> None:
    """Raise a ValueError if spare rollouts are set in a run that samples nothing."""
    if not config.num_spare_rollouts:
        return
    reasons = {
        "algorithm=sft": (
            needs.is_supervised,
            "it learns the task's own answers and samples none",
        ),
        "mode=train_only": (
            config.mode is RunMode.train_only,
            "its rollouts are random data and all end at once",
        ),
    }
    for key, (is_asked, reason) in reasons.items():
        if is_asked:
            raise ValueError(
                f"num_spare_rollouts must be 0 with {key}, got {config.num_spare_rollouts}: {reason}"
            )


def _check_algorithm(config: TrainConfig) -> None:
    algorithm, correction = config.algorithm, config.correction
    if algorithm.ratio_base is RatioBase.rollout and correction.max_importance_weight:
        raise ValueError(
            "correction.max_importance_weight must be 0 when algorithm.ratio_base=rollout, got "
            f"{correction.max_importance_weight:g}: a ratio to the engine's probabilities carries the mismatch "
            "already, and weights would count it twice; limits (max_mean_log_ratio, max_sample_k3) stay possible"
        )
    _check_staleness(config)
    is_in_loss = algorithm.kl_coef > 0 and algorithm.kl_placement is KLPlacement.loss
    if is_in_loss and algorithm.kl_estimator is KLEstimator.k1:
        logger.warning(
            "algorithm.kl_estimator=k1 has a gradient of zero on average as a loss and only adds noise; use "
            "k2 or k3, or algorithm.kl_placement=reward"
        )


def _check_staleness(config: TrainConfig) -> None:
    """Warn if tokens of older policies are treated like tokens of the policy that is trained."""
    correction = config.correction
    corrects = (
        correction.max_importance_weight
        or correction.max_mean_log_ratio
        or correction.max_sample_k3
    )
    is_carried = config.algorithm.ratio_base is RatioBase.rollout
    if config.max_staleness and not (corrects or is_carried):
        logger.warning(
            "max_staleness=%d without a correction: tokens of older policies are treated as if the trained policy had "
            "sampled them; set correction.max_importance_weight=2, or algorithm.ratio_base=rollout",
            config.max_staleness,
        )


def check_context(
    prompts: EncodedPrompts, count: int, *, max_tokens: int, max_context_tokens: int, what: str
) -> int:
    """Raise a ValueError if a prompt leaves no room for a completion; warn if one leaves less than `max_tokens`.

    Args:
        prompts: prompts of a task.
        count: number of prompts to check, from the first.
        max_tokens: maximum number of tokens of a completion.
        max_context_tokens: limit of the engine or of the model, whichever is lower.
        what: name of the prompts in messages.

    Returns:
        Number of tokens of the longest prompt.

    Raises:
        ValueError: the longest prompt is too long; the message names it and its origin.
    """
    lengths = prompts.lengths(count)
    longest = max(lengths)
    prompt = prompts.prompts[lengths.index(longest)]
    if longest >= max_context_tokens:
        cure = f", or leave such rows out: task.max_prompt_tokens={max_context_tokens - 1}"
        raise ValueError(
            f"the longest of the {what} prompts has {longest} tokens "
            f"({prompt.origin or f'prompt {prompt.prompt_id}'}), but the context has room for {max_context_tokens} with its "
            f"completion; raise engine.max_context_tokens if the model allows it{cure if prompt.origin else ''}"
        )
    if longest + max_tokens > max_context_tokens:
        logger.warning(
            "sampling.max_tokens=%d is more than fits: the context has room for %d tokens, and the longest of the %s prompts has "
            "%d, so that its completion ends after %d",
            max_tokens,
            max_context_tokens,
            what,
            longest,
            max_context_tokens - longest,
        )
    return longest


def check_budget(config: TrainConfig, longest: int, *, max_context_tokens: int) -> None:
    """Raise a ValueError if the longest sample does not fit in a micro-batch.

    Args:
        config: config of the run.
        longest: number of tokens of the longest prompt.
        max_context_tokens: limit of the engine or of the model, whichever is lower.

    Raises:
        ValueError: the longest sample does not fit; the message has its number of tokens.
    """
    sample = min(longest + config.sampling.max_tokens, max_context_tokens)
    budget = config.trainer.max_tokens_per_micro_batch
    if sample > budget:
        raise ValueError(
            f"trainer.max_tokens_per_micro_batch must have room for the longest sample, {longest} prompt tokens and "
            f"{sample - longest} of completion, got {budget}"
        )
