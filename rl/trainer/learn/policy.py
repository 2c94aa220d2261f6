"""The policy's trainer: forward and backward in the compute type, fp32 master weights."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rl.algorithms.base.algorithm import LossFunction
from rl.algorithms.base.config import RatioBase
from rl.algorithms.base.correction import Corrector
from rl.algorithms.base.signals import Tokens
from rl.trainer.config import TrainerConfig
from rl.trainer.learn.backend import BatchStats
from rl.trainer.learn.forward import over_batch, policy_logprobs
from rl.trainer.learn.packing import MicroBatch
from rl.trainer.ranks.group import ALONE, Ranks
from rl.trainer.weights.base import TrainedWeights
from rl.trainer.weights.lora import Adapters
from rl.trainer.weights.masters import MasterWeights
from rl.trainer.weights.optimizer import hidden_matrices
from rl.trainer.weights.replicated import ReplicatedWeights
from rollout.models.checkpoint import save_checkpoint
from rollout.models.decoder import Decoder

__all__ = ["PolicyTrainer"]


class PolicyTrainer:
    """Trains a decoder in place, all of its parameters that are not frozen.

    Args:
        decoder: its weights and compute type.
        config: of the optimiser.
        temperature: of the rollouts, > 0.
        corrector: of tokens, where the engine's policy differs from the trainer's; None weighs all alike.
        ratio_base: whose probability the loss divides by.
        adapters: the decoder's, where only they are trained.
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
        ratio_base: RatioBase = RatioBase.old,
        adapters: Adapters | None = None,
        weights: TrainedWeights | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._decoder = decoder
        self._adapters = adapters
        self._temperature = temperature
        self._corrector = corrector
        self._ratio_base = ratio_base
        self._weights = weights or ReplicatedWeights(
            (p for p in decoder.parameters() if p.requires_grad),
            config,
            matrices=hidden_matrices(decoder),
            on_change=None if adapters is None else adapters.merge,
            ema_decay=config.ema_decay,
            ranks=ranks,
        )

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
            tokens = self._tokens(logprobs_N, old_logprobs_N, importance_N, micro_batch)
            output = loss_function(tokens)
            if not bool(output.loss.isfinite()):
                if stats.bad_sample is None:
                    stats.bad_sample = _first_bad_sample(tokens)
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
        if self._ratio_base is RatioBase.rollout:
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
        """Update the weights; returns the gradient's norm before clipping. NaN or inf: no update."""
        return self._weights.step(learning_rate)

    def clear_gradients(self) -> None:
        self._weights.clear_gradients()

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Weights under Hugging Face's names, in the compute type, in a fixed order."""
        for module, tensors in self._decoder.hf_parts():
            yield from self._weights.read(module, tensors)

    def write_beside(self, directory: Path | None) -> None:
        """Add to a Hugging Face directory of the weights what is not in them: `adapter/`, in peft's format, and `ema/`, a
        Hugging Face directory of their average in the compute type. On the ranks that only help: None."""
        if self._adapters is not None and directory is not None:
            self._adapters.save(directory / "adapter")
        if isinstance(self._weights, MasterWeights) and self._weights.has_average:
            with self._weights.averaged():
                weights = dict(self.named_weights())
                if directory is not None:
                    self._write_average(weights, directory)

    def _write_average(self, weights: Mapping[str, torch.Tensor], directory: Path) -> None:
        average = directory / "ema"
        average.mkdir()
        dtype = self._decoder.embed_tokens.dtype
        save_checkpoint(weights, source=directory, directory=average, dtype=dtype)

    def state_dict(self) -> dict[str, Any]:
        return self._weights.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._weights.load_state_dict(state)


def _first_bad_sample(tokens: Tokens) -> int:
    """Of the first trained token with anything that is not finite."""
    known = [tokens.logprobs_N, tokens.base_logprobs_N, tokens.advantages_N, tokens.loss_weights_N]
    if tokens.ref_logprobs_N is not None:
        known.append(tokens.ref_logprobs_N)
    bad_N = ~torch.stack([x_N.isfinite() for x_N in known]).all(dim=0)
    bad_N &= tokens.loss_weights_N != 0
    return int(tokens.sample_ids_N[int(bad_N.int().argmax())])


@torch.no_grad()
def _add_stats(
    stats: BatchStats,
    micro_batch: MicroBatch,
    old_logprobs_N: torch.Tensor,
    metrics: Mapping[str, torch.Tensor],
) -> None:
    log_ratio_N = old_logprobs_N - micro_batch.rollout_logprobs_N.to(old_logprobs_N)
    # K3 of KL(engine || trainer): r - 1 - log r, r = trainer / engine
    k3_N = log_ratio_N.expm1() - log_ratio_N
    difference_N = log_ratio_N.abs()
    sums = {**metrics}
    is_fresh_N = micro_batch.extras.get("is_fresh")
    if is_fresh_N is not None:
        sums["staleness/fresh_fraction"] = is_fresh_N.sum()
        sums["staleness/k3"] = torch.where(is_fresh_N, 0.0, k3_N).sum()
        k3_N = torch.where(is_fresh_N, k3_N, 0.0)
        difference_N = torch.where(is_fresh_N, difference_N, 0.0)
    sums["mismatch/logprob_difference_mean"] = difference_N.sum()
    sums["mismatch/k3"] = k3_N.sum()
    for name, value in sums.items():
        stats.sums[name] = stats.sums.get(name, 0.0) + float(value)
    greatest = float(difference_N.max())
    stats.max_logprob_difference = max(stats.max_logprob_difference, greatest)
    stats.num_tokens += log_ratio_N.numel()
