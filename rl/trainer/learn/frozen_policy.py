"""A policy that is read and not trained: the reference of a KL penalty, or a teacher."""

from collections.abc import Iterable, Sequence

import torch

from rl.trainer.batch.forward import over_batch, policy_logprobs
from rl.trainer.batch.packing import MicroBatch
from rollout.models.decoder import Decoder

__all__ = ["FrozenPolicy"]


class FrozenPolicy:
    """Computes log-probabilities at the temperature of the rollouts.

    Args:
        decoder: the policy's own decoder; frozen in place.
        temperature: temperature of the rollouts, > 0.
    """

    def __init__(self, decoder: Decoder, *, temperature: float) -> None:
        self._decoder = decoder.requires_grad_(False)
        self._temperature = temperature

    def logprobs(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        """Compute the log-probabilities of all micro-batches, one after the other: [N]."""

        def of(batch: MicroBatch) -> torch.Tensor:
            return policy_logprobs(self._decoder, batch, temperature=self._temperature)[0]

        return over_batch(of, micro_batches)

    @torch.no_grad()
    def load(self, named_weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copy the weights of another policy of the same shape."""
        own = dict(self._decoder.hf_tensors())
        for name, tensor in named_weights:
            own.pop(name).copy_(tensor)
        assert not own, f"weights without a value: {sorted(own)}"

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the weights under Hugging Face's names."""
        return {name: tensor.detach() for name, tensor in self._decoder.hf_tensors()}
