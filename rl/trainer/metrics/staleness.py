"""Staleness of a batch: checked against its bound, measured, and predicted.

staleness of a rollout = trainer's version - the oldest version among its tokens, when it is trained on
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from rl.rollouts import NO_VERSION, Rollout, RolloutGroup

__all__ = ["Pipeline", "Staleness", "check_staleness", "is_fresh"]


def check_staleness(
    groups: Sequence[RolloutGroup], policy_version: int, *, max_staleness: int
) -> None:
    """Refuse tokens of a policy that a step must not train on.

    Args:
        groups: rollout groups of a batch.
        policy_version: version of the policy that the batch trains.
        max_staleness: greatest staleness allowed, in versions.

    Raises:
        RuntimeError: some are older, or newer than what is trained.
    """
    versions = {v for rollout in _sampled(groups) for v in _versions(rollout)}
    allowed = range(policy_version - max_staleness, policy_version + 1)
    if not all(version in allowed for version in versions):
        raise RuntimeError(
            f"step {policy_version + 1} trains version {policy_version} at max_staleness={max_staleness}, "
            f"but its rollouts come from versions {sorted(versions)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Staleness:
    """Staleness of the rollouts of a batch, in versions."""

    mean: float
    max: int

    @classmethod
    def of(cls, groups: Sequence[RolloutGroup], policy_version: int) -> "Staleness | None":
        """Measure a batch that trains `policy_version`; None where nothing was sampled."""
        staleness = [policy_version - min(_versions(rollout)) for rollout in _sampled(groups)]
        if not staleness:
            return None
        return cls(mean=sum(staleness) / len(staleness), max=max(staleness))

    def metrics(self) -> dict[str, float]:
        """Return all values by metric name."""
        return {"staleness/mean": self.mean, "staleness/max": self.max}


def is_fresh(rollout: Rollout, policy_version: int, *, keeps_kv: bool) -> torch.Tensor:
    """Tell for each sampled token whether the engine drew it from the same weights that are trained: [n].

    In exact mode the log-probability of such a token is the trainer's own. Others differ because the policy has moved, and say
    nothing about the engine.

    Args:
        rollout: has n sampled tokens.
        policy_version: version that is trained.
        keeps_kv: whether tokens after an older one of their rollout were drawn with keys and values of older weights.
    """
    versions = torch.tensor(_versions(rollout), dtype=torch.int64)
    fresh_n = versions == policy_version
    return fresh_n & fresh_n.all() if keeps_kv else fresh_n


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Rates and sizes that staleness follows from, as measured in a step."""

    concurrency: float
    """Rollouts decoded at the same time, mean of the engine's steps."""
    batch_size: int
    """Rollouts of a batch."""
    tail: float
    """Time of a batch's longest rollout divided by the mean time of a rollout."""
    speed_ratio: float
    """Rollouts per second that are generated, over those that could be trained; 0 where both take turns, since nothing is
    generated while one trains."""
    queue: float
    """Number of complete batches that wait for the trainer."""

    @classmethod
    def measure(
        cls,
        groups: Sequence[RolloutGroup],
        *,
        concurrency: float,
        speed_ratio: float,
        num_waiting: int,
    ) -> "Pipeline":
        # surplus ones were decoded, too, for as long as they were
        begun = [r for group in groups for r in (*group.rollouts, *group.surplus)]
        lengths = [rollout.num_sampled_tokens for rollout in begun]
        mean = sum(lengths) / len(lengths)
        return cls(
            concurrency=concurrency,
            batch_size=len(lengths),
            tail=max(lengths) / max(mean, 1.0),
            speed_ratio=speed_ratio,
            queue=num_waiting / len(groups),
        )

    def staleness(self, *, max_staleness: int) -> float:
        """Mean staleness that these rates lead to.

        With C, B, M, rho and q the fields in their order: C M / B + rho where rollouts are the slower ones (rho < 1),
        C M / (rho B) + (2 q + rho - 1) / (2 rho) where training is (Applied Compute, "Staleness in fully async RL").
        Theirs is a run that begins a rollout whenever one ends and trains on whatever groups are complete. Departures:
        1. batches are made in `group_id` order, so M is the tail of a batch, where theirs is that of a group;
        2. admission caps it. Where the cap is the lower, rollouts are begun in bursts, when an update allows it, and how
           many find the engine free decides how far below the cap they stay; `drain` does the same;
        3. rollouts that admission holds back are no faster than training in the long run, so measured rho stays below 1 even
           where batches wait: whichever of rho and q is more counts. Where both take turns neither does.
        """
        generating = self.concurrency * self.tail / self.batch_size
        rho = self.speed_ratio
        if rho < 1:
            trained_beside = max(rho, self.queue) if rho else 0.0
            return min(generating + trained_beside, max_staleness)
        return min(generating / rho + (2 * self.queue + rho - 1) / (2 * rho), max_staleness)


def _sampled(groups: Sequence[RolloutGroup]) -> Iterator[Rollout]:
    return (r for group in groups for r in group.rollouts if _versions(r))


def _versions(rollout: Rollout) -> list[int]:
    """Return the versions of its sampled tokens; empty where no policy sampled them."""
    return [v for v in rollout.log.policy_versions if v != NO_VERSION]
