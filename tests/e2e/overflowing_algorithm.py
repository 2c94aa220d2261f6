"""An algorithm whose loss is not finite from its first batches on, as many as it is told."""

from dataclasses import dataclass, replace

from rl.algorithms.base.ops import importance_weighted
from rl.algorithms.base.signals import Estimates


@dataclass
class Overflowing:
    num_bad: int = 1000

    def __post_init__(self):
        self._num_batches = 0

    def advantages(self, signals):
        self._num_batches += 1
        return Estimates(advantages_N=signals.per_token(signals.rewards_S + 1.0))

    def loss(self, tokens):
        output = importance_weighted(tokens)
        if self._num_batches <= self.num_bad:
            output = replace(output, loss=output.loss * float("nan"))
        return output
