"""From an algorithm's config to the functions that the trainer calls: the one place that knows them all."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rl.algorithm_config import (
    AlgorithmConfig,
    CISPOConfig,
    ClippedConfig,
    DAPOConfig,
    DistillationConfig,
    DrGRPOConfig,
    GRPOConfig,
    GSPOConfig,
    KLPlacement,
    MaxRLConfig,
    PPOConfig,
    ReinforcePPConfig,
    RLOOConfig,
    SFTConfig,
)
from rl.algorithms.cispo import cispo_advantages, cispo_loss
from rl.algorithms.dapo import dapo_advantages, dapo_loss
from rl.algorithms.distillation import distillation_advantages, distillation_loss
from rl.algorithms.dr_grpo import dr_grpo_advantages, dr_grpo_loss
from rl.algorithms.grpo import grpo_advantages, grpo_loss
from rl.algorithms.gspo import gspo_advantages, gspo_loss
from rl.algorithms.maxrl import maxrl_advantages, maxrl_loss
from rl.algorithms.ppo import ppo_advantages, ppo_loss
from rl.algorithms.reinforce_pp import reinforce_pp_advantages, reinforce_pp_loss
from rl.algorithms.rloo import rloo_advantages, rloo_loss
from rl.algorithms.sft import sft_advantages, sft_loss
from rl.algorithms.signals import Estimates, Signals
from rl.trainer.learn.backend import LossFunction

__all__ = ["Algorithm", "make_algorithm", "needs_old_logprobs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """What the trainer knows of an algorithm."""

    advantages: Callable[[Signals], Estimates]
    loss: LossFunction
    max_refills: int = 0
    """Batches' worth of groups without signal that are replaced in a step."""
    critic: PPOConfig | None = None
    """How the critic learns, where there is one."""
    learns_answers: bool = False
    """Completions are the tasks' own answers; the policy samples none."""


def make_algorithm(config: AlgorithmConfig, *, max_tokens: int) -> Algorithm:
    """The algorithm of a config.

    Args:
        config: of any of the algorithms.
        max_tokens: of a completion.
    """
    match config:
        case GRPOConfig():
            return Algorithm(
                advantages=partial(grpo_advantages, normalize_std=config.normalize_std),
                loss=partial(grpo_loss, **_clips(config)),
            )
        case DrGRPOConfig():
            return Algorithm(
                advantages=dr_grpo_advantages,
                loss=partial(dr_grpo_loss, **_clips(config)),
            )
        case DAPOConfig():
            return Algorithm(
                advantages=partial(
                    dapo_advantages,
                    max_tokens=max_tokens,
                    num_buffer_tokens=config.num_overlong_tokens,
                ),
                loss=partial(dapo_loss, **_clips(config)),
                max_refills=config.max_refills,
            )
        case ReinforcePPConfig():
            return Algorithm(
                advantages=partial(
                    reinforce_pp_advantages, use_group_baseline=config.use_group_baseline
                ),
                loss=partial(reinforce_pp_loss, **_clips(config)),
            )
        case GSPOConfig():
            return Algorithm(advantages=gspo_advantages, loss=partial(gspo_loss, **_clips(config)))
        case PPOConfig():
            return Algorithm(
                advantages=partial(
                    ppo_advantages, gamma=config.gamma, gae_lambda=config.gae_lambda
                ),
                loss=partial(ppo_loss, **_clips(config)),
                critic=config,
            )
        case CISPOConfig():
            return Algorithm(
                advantages=cispo_advantages, loss=partial(cispo_loss, max_ratio=config.max_ratio)
            )
        case RLOOConfig():
            return Algorithm(advantages=rloo_advantages, loss=rloo_loss)
        case MaxRLConfig():
            return Algorithm(advantages=maxrl_advantages, loss=maxrl_loss)
        case DistillationConfig():
            return Algorithm(advantages=distillation_advantages, loss=distillation_loss)
        case SFTConfig():
            return Algorithm(advantages=sft_advantages, loss=sft_loss, learns_answers=True)
        case _:
            raise TypeError(f"no algorithm for a {type(config).__name__}")


def _clips(config: ClippedConfig) -> dict[str, float]:
    return {"clip_low": config.clip_low, "clip_high": config.clip_high}


def needs_old_logprobs(config: AlgorithmConfig, *, steps_per_batch: int) -> bool:
    """Whether the policy's own log-probabilities are wanted before the first step of a batch."""
    is_in_reward = config.kl_coef > 0 and config.kl_placement is KLPlacement.reward
    return steps_per_batch > 1 or is_in_reward or isinstance(config, DistillationConfig)
