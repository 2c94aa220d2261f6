"""SFT: supervised fine-tuning on the tasks' own answers, as a warm start
(InstructGPT, https://arxiv.org/abs/2203.02155, section 3.5).

    L = -sum_n w_n logprobs

Tokens come from `answer` in each prompt's row (`rl/trainer/collect/demonstrations.py`) instead of from the policy; every one has the advantage 1.
No ratio, no reward and no correction enters. We differ from the paper: prompts are not trained on.
"""

import torch

from rl.algorithms.output import LossOutput
from rl.algorithms.signals import Estimates, Signals, Tokens

__all__ = ["sft_advantages", "sft_loss"]


def sft_advantages(signals: Signals) -> Estimates:
    """1 for every token."""
    return Estimates(advantages_N=torch.ones_like(signals.token_rewards_N))


def sft_loss(tokens: Tokens) -> LossOutput:
    """Cross entropy."""
    is_trained_N = tokens.loss_weights_N != 0
    logprobs_N = torch.where(is_trained_N, tokens.logprobs_N, 0.0)
    weighted_N = logprobs_N * tokens.advantages_N * tokens.loss_weights_N
    loss = -torch.where(is_trained_N, weighted_N, 0.0).sum()
    return LossOutput(loss=loss, metrics={})
