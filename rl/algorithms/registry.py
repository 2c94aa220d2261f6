"""All algorithms, by name: one line each. A config's exact type decides, so a subclass needs a line of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rl.algorithms.base.algorithm import Algorithm, Needs
from rl.algorithms.base.config import AlgorithmConfig, KLPlacement
from rl.algorithms.cispo import CISPOConfig, make_cispo
from rl.algorithms.custom import CustomConfig, make_custom
from rl.algorithms.dapo import DAPOConfig, make_dapo
from rl.algorithms.distillation import DistillationConfig, make_distillation
from rl.algorithms.dr_grpo import DrGRPOConfig, make_dr_grpo
from rl.algorithms.grpo import GRPOConfig, make_grpo
from rl.algorithms.gspo import GSPOConfig, make_gspo
from rl.algorithms.maxrl import MaxRLConfig, make_maxrl
from rl.algorithms.ppo import PPOConfig, make_ppo
from rl.algorithms.reinforce_pp import ReinforcePPConfig, make_reinforce_pp
from rl.algorithms.rloo import RLOOConfig, make_rloo
from rl.algorithms.sft import SFTConfig, make_sft

__all__ = ["ALGORITHMS", "Entry", "make_algorithm"]


class Make(Protocol):
    """Makes an algorithm from its config."""

    def __call__(self, config: Any, /, *, max_tokens: int) -> Algorithm:
        """Make it for completions of at most `max_tokens`."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One algorithm: its schema in the `algorithm` group, and the function that makes it."""

    schema: type[AlgorithmConfig]
    make: Make


ALGORITHMS: Mapping[str, Entry] = {
    "grpo": Entry(GRPOConfig, make_grpo),
    "dr_grpo": Entry(DrGRPOConfig, make_dr_grpo),
    "dapo": Entry(DAPOConfig, make_dapo),
    "rloo": Entry(RLOOConfig, make_rloo),
    "reinforce_pp": Entry(ReinforcePPConfig, make_reinforce_pp),
    "gspo": Entry(GSPOConfig, make_gspo),
    "cispo": Entry(CISPOConfig, make_cispo),
    "maxrl": Entry(MaxRLConfig, make_maxrl),
    "ppo": Entry(PPOConfig, make_ppo),
    "distillation": Entry(DistillationConfig, make_distillation),
    "sft": Entry(SFTConfig, make_sft),
    "custom": Entry(CustomConfig, make_custom),
}


def make_algorithm(config: AlgorithmConfig, *, max_tokens: int) -> Algorithm:
    """Make the algorithm of a config.

    Args:
        config: of exactly one of the types in `ALGORITHMS`.
        max_tokens: limit on the tokens of a completion.

    Raises:
        ValueError: a value does not fit `max_tokens`, or a custom algorithm cannot be loaded.
        TypeError: the type of `config` is not registered.
    """
    for entry in ALGORITHMS.values():
        if type(config) is entry.schema:
            made = entry.make(config, max_tokens=max_tokens)
            return replace(made, needs=_with_penalty(made.needs, config))
    raise TypeError(
        f"no algorithm is registered for {type(config).__name__}; add its line to rl/algorithms/registry.py"
    )


def _with_penalty(needs: Needs, config: AlgorithmConfig) -> Needs:
    """Add what the KL penalty of any algorithm needs."""
    if config.kl_coef == 0:
        return needs
    is_in_reward = config.kl_placement is KLPlacement.reward
    return replace(needs, reference=True, old_logprobs=needs.old_logprobs or is_in_reward)
