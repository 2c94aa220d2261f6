"""The policy's trainer: forward and backward in the compute type, fp32 master weights."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rl.algorithms.base.algorithm import LossFunction
from rl.algorithms.base.config import RatioBase
from rl.algorithms.base.correction import Corrector
from rl.algorithms.base.signals import Tokens
from rl.trainer.batch.forward import over_batch, policy_logprobs
from rl.trainer.batch.packing import MicroBatch
from rl.trainer.config import TrainerConfig
from rl.trainer.learn.accumulate import accumulate
from rl.trainer.metrics.sums import LossSums, MismatchSums
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
        config: config of the optimiser.
        temperature: temperature of the rollouts, > 0.
        corrector: weighs tokens where the engine's policy differs from the trainer's; None weighs all the same.
        ratio_base: the policy whose probability the loss divides by.
        adapters: the decoder's adapters, if only they are trained.
        weights: sharded weights of the decoder; None keeps a copy on every rank.
        ranks: processes that train together.
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
    ) -> LossSums:
        """Accumulate the gradient of the loss sum, divided by `denominator`.

        The old log-probabilities are the column `old_logprobs`; without it, with one optimiser step per batch, they are
        those of the training forward, detached.
        """

        def loss(
            micro_batch: MicroBatch, outputs: tuple[torch.Tensor, ...]
        ) -> tuple[torch.Tensor, LossSums]:
            return self._loss(loss_function, micro_batch, *outputs)

        return accumulate(
            self._weights, micro_batches, self.logprobs, loss, denominator=denominator
        )

    def _loss(
        self,
        loss_function: LossFunction,
        micro_batch: MicroBatch,
        logprobs_N: torch.Tensor,
        entropy_N: torch.Tensor,
    ) -> tuple[torch.Tensor, LossSums]:
        old_logprobs_N = micro_batch.columns.get("old_logprobs", logprobs_N.detach())
        importance_N = self._importance(old_logprobs_N, micro_batch)
        tokens = self._tokens(logprobs_N, old_logprobs_N, importance_N, micro_batch)
        output = loss_function(tokens)
        if not bool(output.loss.isfinite()):
            return output.loss, LossSums(bad_sample=_first_bad_sample(tokens))
        metrics = {**output.metrics, "policy/entropy": entropy_N.detach().sum()}
        sums = LossSums(
            losses={"loss/policy": float(output.loss.detach())},
            tokens={name: float(value) for name, value in metrics.items()},
            mismatch=_mismatch(micro_batch, old_logprobs_N, importance_N),
            num_tokens=logprobs_N.numel(),
        )
        return output.loss, sums

    def logprobs(self, micro_batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute [N] log-probabilities of the targets, with grad, and [N] entropies, both in nats."""

        def logprobs(batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
            return policy_logprobs(self._decoder, batch, temperature=self._temperature)

        return self._weights.forward(logprobs, micro_batch)

    def recompute_logprobs(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        """Compute the log-probabilities of all micro-batches, one after the other, without a gradient: [N]."""
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
            ref_logprobs_N=micro_batch.columns.get("ref_logprobs"),
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
        """Yield the weights under Hugging Face's names, in the compute type, in a fixed order."""
        for module, tensors in self._decoder.hf_parts():
            yield from self._weights.read(module, tensors)

    def write_beside(self, directory: Path | None) -> None:
        """Add to a Hugging Face directory of the weights `adapter/`, in peft's format, and `ema/`, a Hugging Face directory of
        their average in the compute type, where there are such. All ranks call it; those that only help pass None."""
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
    """Return the sample of the first trained token with anything that is not finite."""
    known = [tokens.logprobs_N, tokens.base_logprobs_N, tokens.advantages_N, tokens.loss_weights_N]
    if tokens.ref_logprobs_N is not None:
        known.append(tokens.ref_logprobs_N)
    bad_N = ~torch.stack([x_N.isfinite() for x_N in known]).all(dim=0)
    bad_N &= tokens.loss_weights_N != 0
    return int(tokens.sample_ids_N[int(bad_N.int().argmax())])


@torch.no_grad()
def _mismatch(
    micro_batch: MicroBatch, old_logprobs_N: torch.Tensor, importance_N: torch.Tensor
) -> MismatchSums:
    log_ratio_N = old_logprobs_N - micro_batch.rollout_logprobs_N.to(old_logprobs_N)
    # K3 of KL(engine || trainer): r - 1 - log r, r = trainer / engine
    k3_N = log_ratio_N.expm1() - log_ratio_N
    difference_N = log_ratio_N.abs()
    sums = MismatchSums(
        num_fresh=log_ratio_N.numel(),
        weight=float(importance_N.sum()),
        squared_weight=float(importance_N.square().sum()),
        num_left_out=int((importance_N == 0).sum()),
    )
    is_fresh_N = micro_batch.columns.get("is_fresh")
    if is_fresh_N is not None:
        sums.num_fresh = int(is_fresh_N.sum())
        sums.num_stale = log_ratio_N.numel() - sums.num_fresh
        sums.stale_k3 = float(torch.where(is_fresh_N, 0.0, k3_N).sum())
        k3_N = torch.where(is_fresh_N, k3_N, 0.0)
        difference_N = torch.where(is_fresh_N, difference_N, 0.0)
    sums.k3 = float(k3_N.sum())
    sums.difference = float(difference_N.sum())
    sums.max_difference = float(difference_N.max())
    return sums
