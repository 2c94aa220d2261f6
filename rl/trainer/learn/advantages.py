"""Turns scores and recomputed columns into advantages."""

import torch

from rl.algorithms.base.algorithm import Algorithm
from rl.algorithms.base.signals import Signals
from rl.trainer.batch.training_batch import TrainingBatch
from rl.trainer.learn.kl_penalty import KLPenalty

__all__ = ["with_advantages"]


def with_advantages(
    batch: TrainingBatch, algorithm: Algorithm, penalty: KLPenalty | None
) -> TrainingBatch:
    """Add the columns `advantages` and, for a critic, `returns`, both in float64.

    Args:
        batch: all its samples have a score.
        algorithm: computes them.
        penalty: taken off the tokens' rewards where it is not part of the loss.
    """
    if not len(batch):
        return batch.with_columns({"advantages": torch.zeros(0, dtype=torch.float64)})
    estimates = algorithm.advantages(_signals(batch, penalty))
    columns = {"advantages": estimates.advantages_N}
    if estimates.returns_N is not None:
        columns["returns"] = estimates.returns_N
    return batch.with_columns(columns)


def _signals(batch: TrainingBatch, penalty: KLPenalty | None) -> Signals:
    rollouts, columns = batch.rollouts, batch.columns
    token_rewards_N = torch.zeros(sum(batch.lengths), dtype=torch.float64)
    if penalty is not None and not penalty.is_in_loss:
        token_rewards_N += penalty.rewards(batch["old_logprobs"], batch["ref_logprobs"])
    if "teacher_logprobs" in columns:
        token_rewards_N += batch["teacher_logprobs"].double() - batch["old_logprobs"].double()
    values_N = columns.get("values")
    return Signals(
        # finite: ScoreOutcome refuses others
        rewards_S=torch.tensor([r.reward for r in rollouts], dtype=torch.float64),
        group_ids_S=torch.tensor([r.group_id for r in rollouts], dtype=torch.int64),
        lengths_S=torch.tensor(batch.lengths, dtype=torch.int64),
        token_rewards_N=token_rewards_N,
        values_N=None if values_N is None else values_N.double(),
    )
