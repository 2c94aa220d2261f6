"""Measures what over-provisioning leaves out: compares the kept rollouts with all that were begun.

The first to end are the short ones. The final length of the others is unknown: an aborted rollout is *at least* as
long as it was (censored), so the mean over all that were begun is a lower bound, and the true bias of the kept ones is at
least the difference. Aborted rollouts have no score either. The longest kept rollouts come nearest to them: where their
rewards differ from the others', the batch is biased in that direction.
"""

from collections.abc import Sequence
from statistics import fmean

from rl.rollouts import RolloutGroup
from rollout.core import FinishReason

__all__ = ["overprovision_metrics"]


def overprovision_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Measure the groups of a batch; empty where there were no spare rollouts. Lengths are in sampled tokens.

    `num_begun` and `num_aborted` count rollouts (what is neither kept nor aborted ended together with the last that was
    kept); `length_mean_kept`; `length_mean_begun_at_least`, over kept and aborted; `length_mean_aborted_at_least`;
    `wasted_token_fraction`, of all tokens sampled; `reward_mean_longest`, over the longest kept rollout of every group, to be
    compared with `reward/mean`.
    """
    kept = [r for group in groups for r in group.rollouts]
    surplus = [r for group in groups for r in group.surplus]
    if not surplus:
        return {}
    aborted = [r for r in surplus if r.turns[-1].finish_reason is FinishReason.ABORTED]
    kept_lengths = [r.num_sampled_tokens for r in kept]
    surplus_lengths = [r.num_sampled_tokens for r in surplus]
    metrics = {
        "num_begun": float(len(kept) + len(surplus)),
        "num_aborted": float(len(aborted)),
        "length_mean_kept": fmean(kept_lengths),
        "length_mean_begun_at_least": fmean(kept_lengths + surplus_lengths),
        "wasted_token_fraction": sum(surplus_lengths)
        / max(sum(kept_lengths) + sum(surplus_lengths), 1),
    }
    if aborted:
        metrics["length_mean_aborted_at_least"] = fmean(r.num_sampled_tokens for r in aborted)
    longest = [max(group.rollouts, key=lambda r: r.num_sampled_tokens) for group in groups]
    rewards = [r.reward for r in longest if r.reward is not None]
    if rewards:
        metrics["reward_mean_longest"] = fmean(rewards)
    return {f"overprovision/{name}": value for name, value in metrics.items()}
