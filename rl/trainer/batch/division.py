"""Divides samples among the ranks, and packs this rank's share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from rl.trainer.batch.balance import balance
from rl.trainer.batch.packing import MicroBatch, fill_up, pack
from rl.trainer.batch.training_batch import TrainingBatch
from rl.trainer.config import TrainerConfig
from rl.trainer.ranks.group import ALONE, Ranks

__all__ = ["Divider", "Division"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """Some samples of a batch, divided among the ranks."""

    samples: Sequence[int]
    """Their indices in the batch."""
    shares: Sequence[Sequence[int]]
    """Each rank's part of `samples`."""
    own: Sequence[int]
    """This rank's share."""
    micro_batches: Sequence[MicroBatch]
    """The packed rows of this rank's share; as many as on the busiest rank."""

    def joined(self, batch: TrainingBatch, of_rank: Sequence[torch.Tensor]) -> torch.Tensor:
        """Join the ranks' columns, each over its share: [N] over all samples of the batch that have tokens."""
        order = [index for share in self.shares for index in share]
        if not order:
            return torch.cat(list(of_rank))
        parts = torch.cat(list(of_rank)).split([batch.lengths[index] for index in order])
        by_sample = dict(zip(order, parts, strict=True))
        return torch.cat([by_sample[index] for index in sorted(order)])


class Divider:
    """Divides the samples of a batch evenly among the ranks, and packs each rank's share into micro-batches.

    Args:
        config: config of the trainer.
        ranks: processes that all make the same calls.
    """

    def __init__(self, config: TrainerConfig, ranks: Ranks) -> None:
        self._config = config
        self._ranks = ranks

    def divide(self, batch: TrainingBatch, samples: Sequence[int]) -> Division:
        """Give each of these samples to one rank."""
        rollouts = [batch.rollouts[i] for i in samples]
        parts = balance(rollouts, self._ranks.count, share_prompts=self._config.share_prompts)
        shares = [[samples[i] for i in part] for part in parts]
        own = shares[self._ranks.rank]
        micro_batches = self._filled_up(
            pack(
                batch.take(own),
                max_tokens=self._config.max_tokens_per_micro_batch,
                share_prompts=self._config.share_prompts,
            )
        )
        return Division(samples=samples, shares=shares, own=own, micro_batches=micro_batches)

    def micro_batches(self, division: Division, batch: TrainingBatch) -> list[MicroBatch]:
        """Returns this rank's micro-batches, with the current columns of the batch."""
        own = batch.take(division.own)
        return [
            micro_batch if micro_batch.is_filler else micro_batch.with_columns_of(own)
            for micro_batch in division.micro_batches
        ]

    def gather(
        self, division: Division, own: Mapping[str, torch.Tensor]
    ) -> list[Mapping[str, torch.Tensor]]:
        """Exchange what every rank computed for its share."""
        return self._ranks.gather({name: column_N.cpu() for name, column_N in own.items()})

    def _filled_up(self, micro_batches: list[MicroBatch]) -> list[MicroBatch]:
        """Fill up to as many micro-batches as the busiest rank has."""
        counts = self._ranks.gather(len(micro_batches))
        # a group of processes always has something to sum
        least = 0 if self._ranks is ALONE else 1
        return fill_up(micro_batches, max(least, *counts))
