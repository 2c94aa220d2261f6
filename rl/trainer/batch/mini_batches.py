"""Cuts a batch into the parts of its optimiser steps, and sets what each token weighs in its step."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rl.algorithms.base.config import LossReduction
from rl.rollouts import RolloutGroup
from rl.trainer.batch.division import Divider, Division
from rl.trainer.batch.packing import MicroBatch, loss_weights
from rl.trainer.batch.training_batch import TrainingBatch

__all__ = ["MiniBatch", "MiniBatches"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniBatch:
    """The part of a batch that one optimiser step trains on."""

    own: Sequence[int]
    """Samples of this rank, as indices in the batch."""
    micro_batches: Sequence[MicroBatch]
    """The packed samples of this rank."""
    denominator: float
    """Divisor of the loss, over all ranks; samples without signal count in it."""


class MiniBatches:
    """Makes the mini-batches of every batch.

    Args:
        divider: the trainer's divider.
        count: optimiser steps per batch.
        reduction: how the tokens' losses are averaged.
        max_tokens: limit on the tokens of a completion.
    """

    def __init__(
        self, divider: Divider, *, count: int, reduction: LossReduction, max_tokens: int
    ) -> None:
        self._divider = divider
        self._count = count
        self._reduction = reduction
        self._max_tokens = max_tokens

    def of(
        self,
        batch: TrainingBatch,
        groups: Sequence[RolloutGroup],
        *,
        trains_all: bool,
        divided: Division | None,
    ) -> list[MiniBatch]:
        """Cut the batch into parts of whole groups. Samples whose advantages are all zero are left out.

        Args:
            batch: a batch with advantages in float64.
            groups: rollout groups of the batch, in their order.
            trains_all: keep samples without advantages, too.
            divided: a division of the batch whose packing is used again where a part has the same samples.
        """
        parts = self._parts(batch, groups)
        weighed = [
            loss_weights(
                [batch.rollouts[i] for i in part], self._reduction, fixed_length=self._max_tokens
            )
            for part in parts
        ]
        has_signal = [
            bool(batch.lengths[i]) and (trains_all or bool((batch["advantages"][span] != 0).any()))
            for i, span in enumerate(batch.spans())
        ]
        weights = [weight for part_weights, _ in weighed for weight in part_weights]
        batch = batch.with_columns(
            {
                "advantages": batch["advantages"].float(),
                "loss_weights": batch.per_token(weights, torch.float32),
            }
        )
        return [
            self._mini_batch(
                batch, [i for i in part if has_signal[i]], denominator=denominator, divided=divided
            )
            for part, (_, denominator) in zip(parts, weighed, strict=True)
        ]

    def _parts(self, batch: TrainingBatch, groups: Sequence[RolloutGroup]) -> list[list[int]]:
        """Samples of each step: as many groups as possible are in every one."""
        of_group: dict[int, list[int]] = {group.group_id: [] for group in groups}
        for index, rollout in enumerate(batch.rollouts):
            of_group[rollout.group_id].append(index)
        per_group = list(of_group.values())
        bounds = [len(per_group) * i // self._count for i in range(self._count + 1)]
        return [
            [index for group in per_group[start:stop] for index in group]
            for start, stop in itertools.pairwise(bounds)
        ]

    def _mini_batch(
        self,
        batch: TrainingBatch,
        samples: Sequence[int],
        *,
        denominator: float,
        divided: Division | None,
    ) -> MiniBatch:
        if divided is None or list(divided.samples) != samples:
            divided = self._divider.divide(batch, samples)
        return MiniBatch(
            own=divided.own,
            micro_batches=self._divider.micro_batches(divided, batch),
            denominator=max(denominator, 1.0),
        )
