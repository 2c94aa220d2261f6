"""Evaluation: greedy answers to held-out prompts, and their scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rl.rollouts import NO_VERSION, Purpose, RolloutGroup
from rl.tasks.prompts import Prompt
from rl.trainer.collect.collector import Collector, count_unscored
from rollout.core import SamplingParams

__all__ = ["Evaluation", "evaluate"]

Progress = Callable[[int, int], None]
_POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Scored answers. An answer that could not be scored counts as 0, and its number is reported."""

    groups: list[RolloutGroup]
    scores: list[float]
    """Score of each prompt."""
    num_unscored: int
    length_mean: float

    @property
    def reward_mean(self) -> float:
        return sum(self.scores) / len(self.scores)

    @property
    def accuracy(self) -> float | None:
        """Mean score as a share of right answers; None if a score is below 0 or above 1, which is no share."""
        return self.reward_mean if all(0 <= score <= 1 for score in self.scores) else None

    def metrics(self) -> dict[str, float]:
        """Return the metrics: the mean reward, and the accuracy if there is one."""
        shares: dict[str, float] = {}
        if self.accuracy is not None:
            shares = {
                "evaluation/accuracy": self.accuracy,
                "evaluation/num_correct": sum(self.scores),
            }
        return {
            **shares,
            "evaluation/reward_mean": self.reward_mean,
            "evaluation/num_unscored": self.num_unscored,
            "evaluation/length_mean": self.length_mean,
            "evaluation/num_prompts": len(self.groups),
        }


def evaluate(
    collector: Collector,
    prompts: Sequence[tuple[Prompt, Sequence[int]]],
    *,
    params: SamplingParams,
    progress: Progress,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Sample one greedy completion of each (prompt, token ids); return None if told to stop before the end.

    Training groups may be in flight. They continue meanwhile, and stay with the collector.

    Args:
        collector: collector without another evaluation in flight.
        prompts: held-out prompts.
        params: sampling parameters with temperature 0.
        progress: function called with (done, total).
        should_stop: function called between polls; True ends the evaluation.

    Raises:
        RuntimeError: the completions come from several policy versions.
    """
    for index, (prompt, token_ids) in enumerate(prompts):
        collector.begin(
            prompt,
            token_ids,
            group_id=index,
            group_size=1,
            params=params,
            purpose=Purpose.EVALUATION,
        )
    groups: list[RolloutGroup] = []
    while len(groups) < len(prompts):
        if should_stop():
            return None
        groups += collector.poll(_POLL_SECONDS, purpose=Purpose.EVALUATION)
        progress(len(groups), len(prompts))
    groups.sort(key=lambda group: group.group_id)
    rollouts = [group.rollouts[0] for group in groups]
    versions = {version for r in rollouts for version in r.log.policy_versions} - {NO_VERSION}
    if len(versions) > 1:
        raise RuntimeError(f"an evaluation must use one policy, got versions {sorted(versions)}")
    return Evaluation(
        groups=groups,
        scores=[0.0 if r.reward is None else r.reward for r in rollouts],
        num_unscored=count_unscored(groups)[0],
        length_mean=sum(r.num_sampled_tokens for r in rollouts) / len(rollouts),
    )
