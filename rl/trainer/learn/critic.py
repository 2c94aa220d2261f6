"""PPO's critic: a decoder of its own with one output, trained on the returns of the same micro-batches."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kernels.numerics import accumulate_dtype
from rl.algorithms.ppo import value_loss
from rl.trainer.config import TrainerConfig
from rl.trainer.learn.backend import BatchStats
from rl.trainer.learn.forward import over_batch, target_states
from rl.trainer.learn.packing import MicroBatch
from rl.trainer.ranks.group import ALONE, Ranks
from rl.trainer.weights.base import TrainedWeights
from rl.trainer.weights.optimizer import hidden_matrices
from rl.trainer.weights.replicated import ReplicatedWeights
from rollout.models.decoder import Decoder

__all__ = ["Critic", "ValueHead"]


class ValueHead(torch.nn.Module):
    """One output, computed in the type that gradients are accumulated in. It begins at zero, so every value does.

    Args:
        decoder: whose final hidden states it reads.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        weight = decoder.embed_tokens
        self._dtype = accumulate_dtype(weight.dtype)
        self.weight = torch.nn.Parameter(
            torch.zeros(weight.shape[1], dtype=self._dtype, device=weight.device)
        )

    def forward(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """[N]."""
        return hidden_NH.to(self._dtype) @ self.weight.to(self._dtype)


class Critic:
    """Predicts what a rollout will still earn, from the row that predicts its next token.

    Args:
        decoder: its own, with the weights that it begins with.
        head: on it.
        config: of the optimiser.
        value_clip: see `value_loss`.
        weights: the decoder's and the head's, where they are sharded.
        ranks: each with a copy of the weights, where they are not.
    """

    def __init__(
        self,
        decoder: Decoder,
        head: ValueHead,
        config: TrainerConfig,
        *,
        value_clip: float,
        weights: TrainedWeights | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._decoder = decoder
        self._head = head
        self._weights = weights or ReplicatedWeights(
            [*decoder.parameters(), *head.parameters()],
            config,
            matrices=hidden_matrices(decoder),
            ranks=ranks,
        )
        self._value_clip = value_clip

    def values(self, micro_batch: MicroBatch) -> torch.Tensor:
        """[N], with grad."""

        def values(batch: MicroBatch) -> torch.Tensor:
            batch = batch.to(self._decoder.embed_tokens.device)
            return self._head(target_states(self._decoder, batch))

        return self._weights.forward(values, micro_batch)

    def old_values(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        """[N] of all micro-batches, one after the other, without a gradient."""
        return over_batch(self.values, micro_batches)

    def forward_backward(
        self, micro_batches: Sequence[MicroBatch], *, denominator: float
    ) -> BatchStats:
        """Accumulate the gradient of the value loss; extras hold `values` (before the step) and `returns`."""
        stats = BatchStats(sums={}, max_logprob_difference=0.0, num_tokens=0, bad_sample=None)
        for index, batch in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            values_N = self.values(batch)
            if batch.is_filler:
                self._weights.backward(values_N.sum(), is_last=is_last)
                continue
            output = value_loss(
                values_N,
                batch.extras["values"].to(values_N),
                batch.extras["returns"].to(values_N),
                batch.loss_weights_N.to(values_N),
                value_clip=self._value_clip,
            )
            started = time.perf_counter()
            self._weights.backward(output.loss / denominator, is_last=is_last)
            stats.backward_seconds += time.perf_counter() - started
            sums = {"loss/value": output.loss.detach(), **output.metrics}
            for name, value in sums.items():
                stats.sums[name] = stats.sums.get(name, 0.0) + float(value)
            stats.num_tokens += values_N.numel()
        return stats

    def step(self, learning_rate: float) -> float:
        """Update the weights; returns the gradient's norm before clipping. NaN or inf: no update."""
        return self._weights.step(learning_rate)

    def state_dict(self) -> dict[str, Any]:
        return self._weights.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._weights.load_state_dict(state)
