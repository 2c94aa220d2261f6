"""One attempt at a prompt, and the siblings that attempt the same one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from rl.rewards.outcome import ScoreOutcome
from rl.tasks.prompts import Prompt
from rollout.core import Completion

__all__ = ["Purpose", "Rollout", "RolloutGroup"]

NO_VERSION = -1
"""Policy version of tokens that no policy sampled."""


class Purpose(Enum):
    TRAINING = "training"
    EVALUATION = "evaluation"


@dataclass(slots=True, kw_only=True)
class Rollout:
    """An append-only token log, and what came of it. `loss_mask` is True where the policy sampled the token."""

    group_id: int
    sample_index: int
    num_prompt_tokens: int
    token_ids: list[int]
    loss_mask: list[bool] = field(default_factory=list)
    rollout_logprobs: list[float] = field(default_factory=list)
    policy_versions: list[int] = field(default_factory=list)
    turns: list[Completion] = field(default_factory=list)
    outcome: ScoreOutcome | None = None
    """None until scored."""

    def __post_init__(self) -> None:
        context, self.token_ids = self.token_ids, []
        self.append_context(context)

    def append_context(self, token_ids: Sequence[int]) -> None:
        """Tokens that the policy reads: the prompt, or an environment's reply."""
        self.token_ids += token_ids
        self.loss_mask += [False] * len(token_ids)
        self.rollout_logprobs += [0.0] * len(token_ids)
        self.policy_versions += [NO_VERSION] * len(token_ids)

    def append_completion(self, completion: Completion) -> None:
        """Tokens that the policy sampled."""
        self.turns.append(completion)
        self.token_ids += completion.token_ids
        self.loss_mask += [True] * len(completion.token_ids)
        self.rollout_logprobs += completion.logprobs
        self.policy_versions += completion.policy_versions

    @property
    def text(self) -> str:
        """What the policy said last."""
        return self.turns[-1].text if self.turns else ""

    @property
    def num_sampled_tokens(self) -> int:
        return sum(self.loss_mask)

    @property
    def reward(self) -> float | None:
        """None where scoring failed or has not happened."""
        return None if self.outcome is None else self.outcome.score


@dataclass(slots=True, kw_only=True)
class RolloutGroup:
    """The siblings of one prompt. `group_id` is the ordinal of the group in the run, never reused."""

    group_id: int
    prompt: Prompt
    purpose: Purpose
    rollouts: list[Rollout]
    surplus: list[Rollout] = field(default_factory=list)
    """Begun in excess and not kept: nobody scores them, and nothing trains on them. Aborted ones end where they were."""

    @property
    def is_complete(self) -> bool:
        return all(rollout.outcome is not None for rollout in self.rollouts)

    def set_aside(self, rollout: Rollout) -> None:
        """Do without a rollout, by identity."""
        self.rollouts = [kept for kept in self.rollouts if kept is not rollout]
        self.surplus.append(rollout)
