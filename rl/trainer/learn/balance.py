"""Which rank trains on which samples: a pure function, so that every rank computes all shares alike.

What a rank has to do grows with the rows it computes: each sample's own, and its prompt's, once per group and rank
where prompts are shared. Whole groups go to the least loaded rank, the largest first (LPT, Graham 1969: at most 4/3 of the
best). Where groups are too few or too uneven for that, single samples are dealt out instead, and a prompt may be computed
on several ranks; whichever way leaves the busiest rank less to do is taken.
"""

from collections.abc import Sequence

from rl.trainer.learn.packing import TrainingSample

__all__ = ["balance"]


def balance(
    samples: Sequence[TrainingSample], num_ranks: int, *, share_prompts: bool
) -> list[list[int]]:
    """Indices of each rank's samples, in their order.

    Args:
        samples: of one optimiser step.
        num_ranks: among which they are shared.
        share_prompts: whether siblings on one rank compute their prompt once.
    """
    if num_ranks == 1:
        return [list(range(len(samples)))]
    groups: dict[int, list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault(sample.rollout.group_id, []).append(index)
    singles = [[index] for index in range(len(samples))]
    plans = [
        _deal(samples, units, num_ranks, share_prompts) for units in ([*groups.values()], singles)
    ]
    # of two alike the one with whole groups
    return min(plans, key=lambda plan: max(_load(samples, p, share_prompts) for p in plan))


def _deal(
    samples: Sequence[TrainingSample],
    units: Sequence[Sequence[int]],
    num_ranks: int,
    share_prompts: bool,
) -> list[list[int]]:
    """Each unit to the rank that then has least to do, the largest unit first; ties go to the lower index."""
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    prompts: list[set[int]] = [
        set() for _ in range(num_ranks)
    ]  # groups whose prompt is computed there

    sized = [(_load(samples, unit, share_prompts), unit) for unit in units]
    for size, unit in sorted(sized, key=lambda pair: -pair[0]):
        rollout = samples[unit[0]].rollout
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


def _load(samples: Sequence[TrainingSample], indices: Sequence[int], share_prompts: bool) -> int:
    """Rows that are computed for these samples."""
    rollouts = [samples[index].rollout for index in indices]
    num_rows = sum(len(r.log) - 1 for r in rollouts)
    if not share_prompts:
        return num_rows
    prompts = {r.group_id: r.num_prompt_tokens for r in rollouts}
    return num_rows - sum(r.num_prompt_tokens for r in rollouts) + sum(prompts.values())
