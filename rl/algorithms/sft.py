"""SFT: supervised fine-tuning on the tasks' own answers, as a warm start
(InstructGPT, https://arxiv.org/abs/2203.02155, section 3.5).

    L = -sum_n w_n logprobs

The tokens come from `answer` in each prompt's row instead of from the policy; every one has the advantage 1.
No ratio, no reward and no correction enters. We differ from the paper: prompts are not trained on.
"""

from dataclasses import dataclass

import torch

from rl.algorithms.base.algorithm import Algorithm, Needs
from rl.algorithms.base.config import AlgorithmConfig
from rl.algorithms.base.output import LossOutput
from rl.algorithms.base.signals import Estimates, Signals, Tokens
from rollout.config import require

__all__ = ["SFTConfig", "make_sft", "sft_advantages", "sft_loss"]


@dataclass(kw_only=True)
class SFTConfig(AlgorithmConfig):
    """Parameters of SFT. It trains on one answer per prompt, whatever `group_size` is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.kl_coef == 0,
            "algorithm.kl_coef",
            "0 when algorithm=sft: the policy sampled no answer, so nothing would estimate its divergence",
            self.kl_coef,
        )


def make_sft(config: SFTConfig, *, max_tokens: int) -> Algorithm:
    """Make SFT; `max_tokens` has no effect."""
    return Algorithm(advantages=sft_advantages, loss=sft_loss, needs=Needs(is_supervised=True))


def sft_advantages(signals: Signals) -> Estimates:
    """Give every token the advantage 1."""
    return Estimates(advantages_N=torch.ones_like(signals.token_rewards_N))


def sft_loss(tokens: Tokens) -> LossOutput:
    """Compute the cross entropy."""
    is_trained_N = tokens.loss_weights_N != 0
    logprobs_N = torch.where(is_trained_N, tokens.logprobs_N, 0.0)
    weighted_N = logprobs_N * tokens.advantages_N * tokens.loss_weights_N
    loss = -torch.where(is_trained_N, weighted_N, 0.0).sum()
    return LossOutput(loss=loss, metrics={})
