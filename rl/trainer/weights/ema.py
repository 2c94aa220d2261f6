"""An exponential moving average of weights (Polyak averaging): average <- d average + (1 - d) weights, after every step.

The average has the masters' type, because a step is far below the resolution of bf16. It starts at the weights that the run
starts with. In a LoRA run it averages the factors, not their product.
"""

from collections.abc import Sequence

import torch

__all__ = ["WeightAverage"]


class WeightAverage:
    """Average of tensors, which must keep their storage.

    Args:
        weights: tensors to average.
        decay: d, in (0, 1).
    """

    def __init__(self, weights: Sequence[torch.Tensor], *, decay: float) -> None:
        self._weights = weights
        self._decay = decay
        self.tensors = [weight.detach().clone() for weight in weights]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights, once per step."""
        for average, weight in zip(self.tensors, self._weights, strict=True):
            average.lerp_(weight, 1 - self._decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the weights; doing it twice restores both bit for bit."""
        for average, weight in zip(self.tensors, self._weights, strict=True):
            kept = average.clone()
            average.copy_(weight)
            weight.copy_(kept)

    @torch.no_grad()
    def load(self, tensors: Sequence[torch.Tensor]) -> None:
        """Copy an average that another run saved."""
        for average, tensor in zip(self.tensors, tensors, strict=True):
            average.copy_(tensor)
