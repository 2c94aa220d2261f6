"""Decides which rank trains on which samples. A pure function: every rank computes the same shares.

The cost of a share is the number of rows to compute: each sample's own, and its prompt's, once per group and rank
where prompts are shared. Whole groups go to the least loaded rank, the largest first (LPT, Graham 1969: at most 4/3 of the
optimum). Where groups are too few or too uneven for that, single samples are dealt out instead, and a prompt may be computed
on several ranks. Of the two plans, the one with less work for the busiest rank is taken.
"""

from collections.abc import Sequence

from rl.rollouts import Rollout

__all__ = ["balance"]


def balance(rollouts: Sequence[Rollout], num_ranks: int, *, share_prompts: bool) -> list[list[int]]:
    """Return the indices of each rank's samples, in their order.

    Args:
        rollouts: samples of one optimiser step.
        num_ranks: number of ranks.
        share_prompts: whether siblings on one rank compute their prompt once.
    """
    if num_ranks == 1:
        return [list(range(len(rollouts)))]
    groups: dict[int, list[int]] = {}
    for index, rollout in enumerate(rollouts):
        groups.setdefault(rollout.group_id, []).append(index)
    singles = [[index] for index in range(len(rollouts))]
    plans = [
        _deal(rollouts, units, num_ranks, share_prompts) for units in ([*groups.values()], singles)
    ]
    # where both cost the same, the plan with whole groups
    return min(plans, key=lambda plan: max(_load(rollouts, p, share_prompts) for p in plan))


def _deal(
    rollouts: Sequence[Rollout],
    units: Sequence[Sequence[int]],
    num_ranks: int,
    share_prompts: bool,
) -> list[list[int]]:
    """Give each unit to the rank that then has least to do, the largest unit first; ties go to the lower index."""
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    # groups whose prompt is computed there
    prompts: list[set[int]] = [set() for _ in range(num_ranks)]

    sized = [(_load(rollouts, unit, share_prompts), unit) for unit in units]
    for size, unit in sorted(sized, key=lambda pair: -pair[0]):
        rollout = rollouts[unit[0]]
        shared = rollout.num_prompt_tokens if share_prompts else 0
        after = [
            load + size - (shared if rollout.group_id in there else 0)
            for load, there in zip(loads, prompts, strict=True)
        ]
        rank = after.index(min(after))
        loads[rank] = after[rank]
        shares[rank] += unit
        prompts[rank].add(rollout.group_id)
    return [sorted(share) for share in shares]


def _load(rollouts: Sequence[Rollout], indices: Sequence[int], share_prompts: bool) -> int:
    """Count the rows that are computed for these samples."""
    chosen = [rollouts[index] for index in indices]
    num_rows = sum(len(r.log) - 1 for r in chosen)
    if not share_prompts:
        return num_rows
    prompts = {r.group_id: r.num_prompt_tokens for r in chosen}
    return num_rows - sum(r.num_prompt_tokens for r in chosen) + sum(prompts.values())
