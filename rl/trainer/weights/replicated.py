"""Weights that every rank holds as a whole copy; the gradients are summed over the ranks before each step."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from rl.trainer.config import TrainerConfig
from rl.trainer.ranks.group import ALONE, Ranks
from rl.trainer.weights.masters import MasterWeights

__all__ = ["ReplicatedWeights"]


class ReplicatedWeights(MasterWeights):
    """Master weights of one process, or the same on every rank.

    Args:
        parameters: all parameters that are trained.
        config: config of the optimiser.
        matrices: hidden matrices, which Muon trains, each with the row counts of the matrices fused in it.
        on_change: called after the parameters got new values.
        ema_decay: decay of the weights' average; 0 keeps no average.
        ranks: processes with a copy each.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        config: TrainerConfig,
        *,
        matrices: Mapping[torch.nn.Parameter, Sequence[int]] | None = None,
        on_change: Callable[[], None] | None = None,
        ema_decay: float = 0.0,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(
            parameters, config, matrices=matrices, on_change=on_change, ema_decay=ema_decay
        )
        self._ranks = ranks

    @torch.no_grad()
    def step(self, learning_rate: float) -> float:
        """Update the weights; returns the gradient's norm before clipping. NaN or inf: no update."""
        self._ranks.all_reduce([m.grad for m in self._masters if m.grad is not None])
        return super().step(learning_rate)
