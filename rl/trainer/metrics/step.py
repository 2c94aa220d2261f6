"""What a step reports of its rollouts and of its training."""

import resource
from collections.abc import Sequence
from typing import Any

from rl.algorithms.base.correction import effective_fraction
from rl.rollouts import Rollout, RolloutGroup
from rl.tasks.messages import text_of_question
from rl.trainer.learn.backend import BatchStats
from rollout.core import FinishReason

__all__ = [
    "all_rows",
    "is_uniform",
    "memory_metrics",
    "rollout_metrics",
    "sample_rows",
    "training_metrics",
]

_OF_FRESH_TOKENS = ("mismatch/k3", "mismatch/logprob_difference_mean")


def rollout_metrics(groups: Sequence[RolloutGroup], *, seconds: float) -> dict[str, float]:
    """Rewards, lengths and speed. Rollouts without a score count in the error rate, not in the mean; those in which the
    policy sampled no token are in the empty fraction, and train nothing but their siblings' baseline."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [r.reward for r in rollouts if r.reward is not None]
    mean = sum(rewards) / len(rewards) if rewards else float("nan")
    variance = sum((x - mean) ** 2 for x in rewards) / len(rewards) if rewards else float("nan")
    lengths = [rollout.num_sampled_tokens for rollout in rollouts]
    truncated = [rollout.turns[-1].finish_reason is FinishReason.LENGTH for rollout in rollouts]
    return {
        "reward/mean": mean,
        "reward/std": variance**0.5,
        "reward/error_rate": 1 - len(rewards) / len(rollouts),
        "reward/zero_variance_groups": sum(is_uniform(group) for group in groups) / len(groups),
        "rollout/length_mean": sum(lengths) / len(lengths),
        "rollout/length_max": max(lengths),
        "rollout/empty_fraction": lengths.count(0) / len(lengths),
        "rollout/truncated_fraction": sum(truncated) / len(truncated),
        "rollout/num_tokens": sum(lengths),
        "rollout/tokens_per_second": sum(lengths) / max(seconds, 1e-9),
    }


def is_uniform(group: RolloutGroup) -> bool:
    """Whether all rollouts with a score have the same one, so that comparing them teaches nothing."""
    return len({r.reward for r in group.rollouts if r.reward is not None}) <= 1


def training_metrics(
    stats: BatchStats, *, denominator: float, grad_norm: float, learning_rate: float
) -> dict[str, float]:
    """Losses over `denominator`, as their gradients; else means over the tokens that were forwarded, of a mismatch over the
    fresh ones, of `staleness/k3` over the others; absent where there are none. `training/num_tokens` are those that were
    forwarded: of samples without signal none are."""
    means = {
        name: value / (denominator if name.startswith("loss/") else stats.num_tokens)
        for name, value in stats.sums.items()
        if stats.num_tokens
    }
    num_fresh = stats.num_fresh_tokens
    counts = dict.fromkeys(_OF_FRESH_TOKENS, num_fresh)
    counts["staleness/k3"] = stats.num_tokens - num_fresh
    for name in counts.keys() & means.keys():
        means.pop(name)
        if counts[name]:
            means[name] = stats.sums[name] / counts[name]
    if num_fresh:
        means["mismatch/logprob_difference_max"] = stats.max_logprob_difference
    if stats.num_tokens:
        means["mismatch/effective_sample_fraction"] = effective_fraction(
            means["mismatch/importance_weight_mean"],
            means.pop("mismatch/importance_weight_squared_mean"),
        )
    return {
        **means,
        "training/num_tokens": stats.num_tokens,
        "optimizer/grad_norm": grad_norm,
        "optimizer/learning_rate": learning_rate,
    }


def memory_metrics() -> dict[str, float]:
    """Resident memory of this process, in GB (10^9 bytes), and its peak."""
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[1])
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "memory/rss_gb": pages * resource.getpagesize() / 1e9,
        "memory/peak_gb": peak_kib * 1024 / 1e9,
    }


def sample_rows(groups: Sequence[RolloutGroup], *, step: int) -> list[dict[str, Any]]:
    """Returns the first rollout of each group, as rows for people to read."""
    return [_row(group, group.rollouts[0], step) for group in groups]


def all_rows(groups: Sequence[RolloutGroup], *, step: int) -> list[dict[str, Any]]:
    """Returns every rollout of the groups, as rows for people to read."""
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
