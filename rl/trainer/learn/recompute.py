"""Forwards without a gradient before the first step on a batch: the old policy's, the reference's and the teacher's
log-probabilities, and the critic's values. They are divided among the ranks and packed as training is."""

import torch

from rl.trainer.batch.division import Divider, Division
from rl.trainer.batch.training_batch import TrainingBatch
from rl.trainer.learn.critic import Critic
from rl.trainer.learn.frozen_policy import FrozenPolicy
from rl.trainer.learn.policy_trainer import PolicyTrainer

__all__ = ["Recomputation"]


class Recomputation:
    """Adds a column for each model that the algorithm needs.

    Args:
        divider: the trainer's divider.
        policy: adds `old_logprobs`; None where they are not needed before the first step.
        reference: adds `ref_logprobs`.
        teacher: adds `teacher_logprobs`.
        critic: adds `values`.
    """

    def __init__(
        self,
        divider: Divider,
        *,
        policy: PolicyTrainer | None,
        reference: FrozenPolicy | None,
        teacher: FrozenPolicy | None,
        critic: Critic | None,
    ) -> None:
        self._divider = divider
        self._policy = policy
        self._reference = reference
        self._teacher = teacher
        self._critic = critic

    @property
    def is_needed(self) -> bool:
        models = (self._policy, self._reference, self._teacher, self._critic)
        return any(model is not None for model in models)

    def add_columns(self, batch: TrainingBatch) -> tuple[TrainingBatch, Division]:
        """Return the batch with its new columns, and how its samples were divided."""
        samples = [i for i, length in enumerate(batch.lengths) if length]
        division = self._divider.divide(batch, samples)
        everyones = self._divider.gather(division, self._own_columns(division))
        columns = {
            name: division.joined(batch, [columns[name] for columns in everyones])
            for name in everyones[0]
        }
        return batch.with_columns(columns), division

    def _own_columns(self, division: Division) -> dict[str, torch.Tensor]:
        """Columns over this rank's share."""
        columns: dict[str, torch.Tensor] = {}
        micro_batches = division.micro_batches
        if self._policy is not None:
            columns["old_logprobs"] = self._policy.recompute_logprobs(micro_batches)
        if self._reference is not None:
            columns["ref_logprobs"] = self._reference.logprobs(micro_batches)
        if self._teacher is not None:
            columns["teacher_logprobs"] = self._teacher.logprobs(micro_batches)
        if self._critic is not None:
            columns["values"] = self._critic.recompute_values(micro_batches)
        return columns
