"""The result of a loss."""

from dataclasses import dataclass

import torch

__all__ = ["LossOutput"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """A loss over the tokens of a micro-batch, and sums to report."""

    loss: torch.Tensor  # scalar sum, in the graph
    metrics: dict[
        str, torch.Tensor
    ]  # scalar sums, detached; add over micro-batches and ranks, then divide
