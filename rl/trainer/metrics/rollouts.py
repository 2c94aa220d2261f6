"""Summary of the rollouts of a step, and rollouts as rows for people to read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rl.rollouts import Rollout, RolloutGroup
from rl.tasks.messages import text_of_question
from rollout.core import FinishReason

__all__ = ["RolloutSummary", "all_rows", "is_uniform", "sample_rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSummary:
    """Rewards and lengths of the groups of a step, including those that dynamic sampling dropped.

    Rollouts without a score count in the error rate and not in the mean. Rollouts without a sampled token count in the
    empty fraction; they train nothing, but are part of their siblings' baseline.
    """

    reward_mean: float
    """NaN where no rollout has a score."""
    reward_std: float
    error_rate: float
    zero_variance_groups: float
    """Share of groups that scored the same throughout."""
    length_mean: float
    length_max: int
    empty_fraction: float
    truncated_fraction: float
    """Share of rollouts that were cut off at `sampling.max_tokens` or at the end of the context."""
    num_tokens: int

    @classmethod
    def of(cls, groups: Sequence[RolloutGroup]) -> "RolloutSummary":
        """Summarise the groups of a step."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        rewards = [r.reward for r in rollouts if r.reward is not None]
        mean = sum(rewards) / len(rewards) if rewards else float("nan")
        variance = sum((x - mean) ** 2 for x in rewards) / len(rewards) if rewards else float("nan")
        lengths = [rollout.num_sampled_tokens for rollout in rollouts]
        truncated = [r.turns[-1].finish_reason is FinishReason.LENGTH for r in rollouts]
        return cls(
            reward_mean=mean,
            reward_std=variance**0.5,
            error_rate=1 - len(rewards) / len(rollouts),
            zero_variance_groups=sum(is_uniform(group) for group in groups) / len(groups),
            length_mean=sum(lengths) / len(lengths),
            length_max=max(lengths),
            empty_fraction=lengths.count(0) / len(lengths),
            truncated_fraction=sum(truncated) / len(truncated),
            num_tokens=sum(lengths),
        )

    def metrics(self) -> dict[str, float]:
        """Return all values by metric name."""
        return {
            "reward/mean": self.reward_mean,
            "reward/std": self.reward_std,
            "reward/error_rate": self.error_rate,
            "reward/zero_variance_groups": self.zero_variance_groups,
            "rollout/length_mean": self.length_mean,
            "rollout/length_max": self.length_max,
            "rollout/empty_fraction": self.empty_fraction,
            "rollout/truncated_fraction": self.truncated_fraction,
            "rollout/num_tokens": self.num_tokens,
        }


def is_uniform(group: RolloutGroup) -> bool:
    """Whether all rollouts with a score have the same one, so that comparing them teaches nothing."""
    return len({r.reward for r in group.rollouts if r.reward is not None}) <= 1


def sample_rows(groups: Sequence[RolloutGroup], *, step: int) -> list[dict[str, Any]]:
    """Turn the first rollout of each group into a row for people to read."""
    return [_row(group, group.rollouts[0], step) for group in groups]


def all_rows(groups: Sequence[RolloutGroup], *, step: int) -> list[dict[str, Any]]:
    """Turn every rollout of the groups into a row for people to read."""
    return [_row(group, rollout, step) for group in groups for rollout in group.rollouts]


def _row(group: RolloutGroup, rollout: Rollout, step: int) -> dict[str, Any]:
    outcome = rollout.outcome
    assert outcome is not None, "complete groups are scored"
    return {
        "step": step,
        "policy_version": max(rollout.log.policy_versions),
        "prompt_id": group.prompt.prompt_id,
        "group_id": group.group_id,
        "sample_index": rollout.sample_index,
        "prompt": text_of_question(group.prompt.question),
        "completion": rollout.text,
        "answer": str(group.prompt.answer),
        "reward": rollout.reward,
        "outcome": outcome.kind.value,
        "finish_reason": rollout.turns[-1].finish_reason.value,
        "num_tokens": rollout.num_sampled_tokens,
    }
