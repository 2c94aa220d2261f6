"""The loop over micro-batches that policy and critic have in common: forward, loss, backward."""

import math
import time
from collections.abc import Callable, Sequence

import torch

from rl.trainer.batch.packing import MicroBatch
from rl.trainer.metrics.sums import LossSums
from rl.trainer.weights.base import TrainedWeights

__all__ = ["accumulate"]

Outputs = tuple[torch.Tensor, ...]


def accumulate(
    weights: TrainedWeights,
    micro_batches: Sequence[MicroBatch],
    forward: Callable[[MicroBatch], Outputs],
    loss: Callable[[MicroBatch, Outputs], tuple[torch.Tensor, LossSums]],
    *,
    denominator: float,
) -> LossSums:
    """Accumulate the gradient of a loss, summed over micro-batches and divided by `denominator`.

    Args:
        weights: receive the gradient.
        micro_batches: as many on every rank; fillers among them have no loss.
        forward: returns [N] tensors with grad.
        loss: returns a scalar sum, and what is reported of it. With a `bad_sample`, the gradient becomes NaN, so that no
            step can be made of it, and only that sample is reported.
        denominator: global, over all ranks.
    """
    total = LossSums()
    for index, micro_batch in enumerate(micro_batches):
        is_last = index == len(micro_batches) - 1
        outputs = forward(micro_batch)
        if micro_batch.is_filler:
            weights.backward(outputs[0].sum(), is_last=is_last)
            continue
        scalar, sums = loss(micro_batch, outputs)
        if sums.bad_sample is not None:
            total.add(LossSums(bad_sample=sums.bad_sample))
            # goes on, since other ranks do
            weights.backward(outputs[0].sum() * math.nan, is_last=is_last)
            continue
        started = time.perf_counter()
        weights.backward(scalar / denominator, is_last=is_last)
        total.backward_seconds += time.perf_counter() - started
        total.add(sums)
    return total
