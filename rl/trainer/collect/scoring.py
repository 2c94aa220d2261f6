"""Check of the share of completions that could not be scored."""

from collections.abc import Sequence

from rl.rollouts import RolloutGroup
from rl.trainer.collect.collector import count_unscored

__all__ = ["ScoringError", "check_scores"]


class ScoringError(RuntimeError):
    """Error for more failed scores than `reward.max_error_rate` allows."""


def check_scores(groups: Sequence[RolloutGroup], *, max_error_rate: float) -> str:
    """Return a sentence on completions that could not be scored; empty if all were scored.

    Args:
        groups: complete groups.
        max_error_rate: maximum share of completions that may fail.

    Raises:
        ScoringError: a larger share failed.
    """
    num_unscored, first = count_unscored(groups)
    if first is None:
        return ""
    total = sum(len(group.rollouts) for group in groups)
    summary = f"{num_unscored} of {total} rollouts could not be scored ({first.kind.value}: {first.message})"
    if num_unscored > max_error_rate * total:
        raise ScoringError(
            f"{summary}; more than reward.max_error_rate={max_error_rate} allows: fix the scorer"
        )
    return summary
