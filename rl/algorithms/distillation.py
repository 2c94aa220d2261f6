"""On-policy distillation: a student learns from its own rollouts, each token judged by a teacher
(https://arxiv.org/abs/2306.13649, section 3; in this form https://thinkingmachines.ai/blog/on-policy-distillation/).

    A_t = teacher_logprobs - old_logprobs              minus the reverse KL's K1, token by token
    L   = -sum_n w_n exp(logprobs - base_logprobs) A

In expectation the gradient of sum_t KL(student || teacher) at each state, with the states held fixed.
We differ from the papers: 1. one sampled token stands for the vocabulary's KL; 2. no discount: each token answers for its own
KL alone; 3. the tasks' scores train nothing, and are still reported. The teacher reads the same token ids: it must have the
student's tokenizer.
"""

from rl.algorithms.ops import importance_weighted
from rl.algorithms.output import LossOutput
from rl.algorithms.signals import Estimates, Signals, Tokens

__all__ = ["distillation_advantages", "distillation_loss"]


def distillation_advantages(signals: Signals) -> Estimates:
    """What the teacher says of each token; the learner puts it into `token_rewards_N`."""
    return Estimates(advantages_N=signals.token_rewards_N)


def distillation_loss(tokens: Tokens) -> LossOutput:
    """REINFORCE, weighted by each token's ratio."""
    return importance_weighted(tokens)
