"""The policy's trainer: forward and backward in the compute type, fp32 master weights, AdamW."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from rl.algorithm_config import RatioBase
from rl.algorithms.correction import Corrector
from rl.algorithms.signals import Tokens
from rl.config import TrainerConfig
from rl.trainer.backend import BatchStats, LossFunction
from rl.trainer.master_weights import MasterWeights
from rl.trainer.packing import MicroBatch
from rl.trainer.policy_forward import over_batch, policy_logprobs
from rl.trainer.ranks import ALONE, Ranks
from rl.trainer.trained_weights import TrainedWeights
from rollout.models.decoder import Decoder

__all__ = ["TorchBackend"]


class TorchBackend:
    """Trains a decoder in place (`MasterWeights`).

    Args:
        decoder: its weights and compute type.
        config: of the optimiser.
        temperature: of the rollouts, > 0.
        corrector: of tokens, where the engine's policy differs from the trainer's; None weighs all alike.
        ratio_base: whose probability the loss divides by.
        weights: the decoder's, where they are sharded.
        ranks: each with a copy of the weights, where they are not.
    """

    def __init__(
        self,
        decoder: Decoder,
        config: TrainerConfig,
        *,
        temperature: float,
        corrector: Corrector | None = None,
        ratio_base: RatioBase = RatioBase.OLD,
        weights: TrainedWeights | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._decoder = decoder.requires_grad_(True)
        self._temperature = temperature
        self._corrector = corrector
        self._ratio_base = ratio_base
        self._weights = weights or MasterWeights(decoder.parameters(), config, ranks=ranks)

    def forward_backward(
        self,
        micro_batches: Sequence[MicroBatch],
        loss_function: LossFunction,
        *,
        denominator: float,
    ) -> BatchStats:
        """Accumulate the gradient of the loss sum over `denominator`.

        `old_logprobs` are those in the micro-batch's extras; without them, with one optimiser step per batch, the
        detached training forward.
        """
        stats = BatchStats(sums={}, max_logprob_difference=0.0, num_tokens=0, bad_sample=None)
        for index, micro_batch in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            logprobs_N, entropy_N = self.logprobs(micro_batch)
            if micro_batch.is_filler:
                self._weights.backward(logprobs_N.sum(), is_last=is_last)
                continue
            old_logprobs_N = micro_batch.extras.get("old_logprobs", logprobs_N.detach())
            importance_N = self._importance(old_logprobs_N, micro_batch)
            output = loss_function(
                self._tokens(logprobs_N, old_logprobs_N, importance_N, micro_batch)
            )
            if not bool(output.loss.isfinite()):
                if stats.bad_sample is None:
                    stats.bad_sample = _first_bad_sample(logprobs_N, micro_batch)
                # goes on, since other ranks do; NaN everywhere, so that no step can be made of it
                self._weights.backward(logprobs_N.sum() * math.nan, is_last=is_last)
                continue
            started = time.perf_counter()
            self._weights.backward(output.loss / denominator, is_last=is_last)
            stats.backward_seconds += time.perf_counter() - started
            metrics = {
                **output.metrics,
                "loss/policy": output.loss.detach(),
                "policy/entropy": entropy_N.detach().sum(),
                "mismatch/importance_weight_mean": importance_N.sum(),
                "mismatch/importance_weight_squared_mean": importance_N.square().sum(),
                "mismatch/left_out_fraction": (importance_N == 0).sum(),
            }
            _add_stats(stats, micro_batch, old_logprobs_N, metrics)
        return stats

    def logprobs(self, micro_batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """[N] log-probabilities of the targets, with grad, and [N] entropies, both in nats."""

        def logprobs(batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
            return policy_logprobs(self._decoder, batch, temperature=self._temperature)

        return self._weights.forward(logprobs, micro_batch)

    def old_logprobs(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        """[N] of all micro-batches, one after the other, without a gradient."""
        return over_batch(lambda batch: self.logprobs(batch)[0], micro_batches)

    def _tokens(
        self,
        logprobs_N: torch.Tensor,
        old_logprobs_N: torch.Tensor,
        importance_N: torch.Tensor,
        micro_batch: MicroBatch,
    ) -> Tokens:
        base_logprobs_N = old_logprobs_N
        if self._ratio_base is RatioBase.ROLLOUT:
            base_logprobs_N = micro_batch.rollout_logprobs_N.to(logprobs_N)
        return Tokens(
            logprobs_N=logprobs_N,
            base_logprobs_N=base_logprobs_N,
            advantages_N=micro_batch.advantages_N.to(logprobs_N.dtype),
            loss_weights_N=micro_batch.loss_weights_N.to(logprobs_N.dtype) * importance_N,
            sample_ids_N=micro_batch.sample_ids_N,
            ref_logprobs_N=micro_batch.extras.get("ref_logprobs"),
        )

    def _importance(self, old_logprobs_N: torch.Tensor, micro_batch: MicroBatch) -> torch.Tensor:
        if self._corrector is None:
            return torch.ones_like(old_logprobs_N)
        rollout_logprobs_N = micro_batch.rollout_logprobs_N.to(old_logprobs_N)
        return self._corrector(old_logprobs_N, rollout_logprobs_N, micro_batch.sample_ids_N)

    def step(self, learning_rate: float) -> float:
        """AdamW; returns the gradient's norm before clipping. NaN or inf: no update."""
        return self._weights.step(learning_rate)

    def clear_gradients(self) -> None:
        self._weights.clear_gradients()

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Weights under Hugging Face's names, in the compute type, in a fixed order."""
        for module, tensors in self._decoder.hf_parts():
            yield from self._weights.read(module, tensors)

    def state_dict(self) -> dict[str, Any]:
        return self._weights.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._weights.load_state_dict(state)


def _first_bad_sample(logprobs_N: torch.Tensor, micro_batch: MicroBatch) -> int:
    bad = ~(logprobs_N.isfinite() & micro_batch.advantages_N.to(logprobs_N.device).isfinite())
    index = int(bad.nonzero()[0]) if bool(bad.any()) else 0
    return int(micro_batch.sample_ids_N[index])


@torch.no_grad()
def _add_stats(
    stats: BatchStats,
    micro_batch: MicroBatch,
    old_logprobs_N: torch.Tensor,
    metrics: Mapping[str, torch.Tensor],
) -> None:
    log_ratio_N = old_logprobs_N - micro_batch.rollout_logprobs_N.to(old_logprobs_N)
    sums = {
        **metrics,
        "mismatch/logprob_difference_mean": log_ratio_N.abs().sum(),
        # K3 of KL(engine || trainer): r - 1 - log r, r = trainer / engine
        "mismatch/k3": (log_ratio_N.expm1() - log_ratio_N).sum(),
    }
    for name, value in sums.items():
        stats.sums[name] = stats.sums.get(name, 0.0) + float(value)
    greatest = float(log_ratio_N.abs().max())
    stats.max_logprob_difference = max(stats.max_logprob_difference, greatest)
    stats.num_tokens += log_ratio_N.numel()
