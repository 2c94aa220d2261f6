"""PPO's critic: a decoder of its own with one output, trained on the returns of the same micro-batches."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kernels.numerics import accumulate_dtype
from rl.algorithms.ppo import value_loss
from rl.trainer.batch.forward import over_batch, target_states
from rl.trainer.batch.packing import MicroBatch
from rl.trainer.config import TrainerConfig
from rl.trainer.learn.accumulate import accumulate
from rl.trainer.metrics.sums import LossSums
from rl.trainer.ranks.group import ALONE, Ranks
from rl.trainer.weights.base import TrainedWeights
from rl.trainer.weights.optimizer import hidden_matrices
from rl.trainer.weights.replicated import ReplicatedWeights
from rollout.models.decoder import Decoder

__all__ = ["Critic", "ValueHead"]


class ValueHead(torch.nn.Module):
    """A linear output in the type that gradients are accumulated in. It starts at zero, so every value starts at 0.

    Args:
        decoder: its final hidden states are read.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        weight = decoder.embed_tokens
        self._dtype = accumulate_dtype(weight.dtype)
        self.weight = torch.nn.Parameter(
            torch.zeros(weight.shape[1], dtype=self._dtype, device=weight.device)
        )

    def forward(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """Compute values from hidden states: [N]."""
        return hidden_NH.to(self._dtype) @ self.weight.to(self._dtype)


class Critic:
    """Predicts the reward that is still to come, from the row that predicts the rollout's next token.

    Args:
        decoder: the critic's own, with its initial weights.
        head: reads the decoder's hidden states.
        config: config of the optimiser.
        value_clip: see `value_loss`.
        weights: sharded weights of decoder and head; None keeps a copy on every rank.
        ranks: processes that train together.
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
        """Compute values with grad: [N]."""

        def values(batch: MicroBatch) -> torch.Tensor:
            batch = batch.to(self._decoder.embed_tokens.device)
            return self._head(target_states(self._decoder, batch))

        return self._weights.forward(values, micro_batch)

    def recompute_values(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        """Compute the values of all micro-batches, one after the other, without a gradient: [N]."""
        return over_batch(self.values, micro_batches)

    def forward_backward(
        self, micro_batches: Sequence[MicroBatch], *, denominator: float
    ) -> LossSums:
        """Accumulate the gradient of the value loss; columns hold `values` (before the step) and `returns`."""
        return accumulate(
            self._weights,
            micro_batches,
            lambda batch: (self.values(batch),),
            self._loss,
            denominator=denominator,
        )

    def _loss(
        self, batch: MicroBatch, outputs: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, LossSums]:
        (values_N,) = outputs
        output = value_loss(
            values_N,
            batch.columns["values"].to(values_N),
            batch.columns["returns"].to(values_N),
            batch.loss_weights_N.to(values_N),
            value_clip=self._value_clip,
        )
        sums = LossSums(
            losses={"loss/value": float(output.loss.detach())},
            tokens={name: float(value) for name, value in output.metrics.items()},
            num_tokens=values_N.numel(),
        )
        return output.loss, sums

    def step(self, learning_rate: float) -> float:
        """Update the weights; returns the gradient's norm before clipping. NaN or inf: no update."""
        return self._weights.step(learning_rate)

    def state_dict(self) -> dict[str, Any]:
        return self._weights.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._weights.load_state_dict(state)
