"""On-policy distillation: a student learns from its own rollouts, each token judged by a teacher
(https://arxiv.org/abs/2306.13649, section 3; in this form https://thinkingmachines.ai/blog/on-policy-distillation/).

    A_t = teacher_logprobs - old_logprobs              minus the reverse KL's K1, token by token
    L   = -sum_n w_n exp(logprobs - base_logprobs) A

In expectation this is the gradient of sum_t KL(student || teacher) at each state, with the states held fixed.
We differ from the papers: 1. one sampled token stands for the vocabulary's KL; 2. there is no discount: each token answers only
for its own KL; 3. the tasks' scores train nothing, and are still reported. The teacher reads the same token ids, so it must have
the student's tokenizer.
"""

from dataclasses import dataclass

from omegaconf import MISSING

from rl.algorithms.base.algorithm import Algorithm, Needs
from rl.algorithms.base.config import AlgorithmConfig
from rl.algorithms.base.ops import importance_weighted
from rl.algorithms.base.output import LossOutput
from rl.algorithms.base.signals import Estimates, Signals, Tokens

__all__ = [
    "DistillationConfig",
    "distillation_advantages",
    "distillation_loss",
    "make_distillation",
]


@dataclass(kw_only=True)
class DistillationConfig(AlgorithmConfig):
    """Parameters of on-policy distillation."""

    teacher_path: str = MISSING
    """A Hugging Face directory or hub id, with the tokenizer of the model that is trained."""


def make_distillation(config: DistillationConfig, *, max_tokens: int) -> Algorithm:
    """Make on-policy distillation; `max_tokens` has no effect."""
    return Algorithm(
        advantages=distillation_advantages,
        loss=distillation_loss,
        needs=Needs(old_logprobs=True, teacher=config.teacher_path),
    )


def distillation_advantages(signals: Signals) -> Estimates:
    """Return the teacher's judgement of each token, which the trainer puts into `token_rewards_N`."""
    return Estimates(advantages_N=signals.token_rewards_N)


def distillation_loss(tokens: Tokens) -> LossOutput:
    """Compute REINFORCE's loss, weighted by each token's ratio."""
    return importance_weighted(tokens)
