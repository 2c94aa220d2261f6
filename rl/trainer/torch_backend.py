"""The trainer in one process: fp32 master weights, forward and backward in the compute type, AdamW."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from kernels.attention import packed_attention
from kernels.linear_logprobs import linear_logprobs
from kernels.numerics import accumulate_dtype
from rl.algorithms.correction import importance_weights
from rl.config import TrainerConfig
from rl.trainer.backend import BatchStats, LossFunction
from rl.trainer.packing import MicroBatch
from rollout.models.decoder import Decoder

__all__ = ["TorchBackend"]


class TorchBackend:
    """Trains a decoder in place.

    Where the compute type is fp32 (or float64), the decoder's parameters are the master weights themselves;
    in bf16 each has an fp32 master, gradients are added to it in fp32 after every micro-batch, and the decoder
    gets the rounded master after every step.

    Args:
        decoder: its weights and compute type.
        config: of the optimiser.
        temperature: of the rollouts, > 0.
        max_importance_weight: of a token, where the engine's policy differs from the trainer's; 0 weighs all alike.
    """

    def __init__(
        self,
        decoder: Decoder,
        config: TrainerConfig,
        *,
        temperature: float,
        max_importance_weight: float = 0.0,
    ) -> None:
        self._decoder = decoder.requires_grad_(True)
        self._max_importance_weight = max_importance_weight
        self._temperature = temperature
        self._max_grad_norm = config.max_grad_norm
        self._parameters = list(decoder.parameters())
        self._masters = [_master_of(p) for p in self._parameters]
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            if master is not parameter:
                parameter.register_post_accumulate_grad_hook(_move_gradient_to(master))
        self._optimizer = torch.optim.AdamW(
            self._masters,
            lr=0.0,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.clear_gradients()

    def forward_backward(
        self,
        micro_batches: Sequence[MicroBatch],
        loss_function: LossFunction,
        *,
        denominator: float,
    ) -> BatchStats:
        """Accumulate the gradient of the loss sum over `denominator`.

        With one optimiser step per batch `old_logprobs` are the detached training forward.
        """
        stats = BatchStats(sums={}, max_logprob_difference=0.0, num_tokens=0, bad_sample=None)
        for micro_batch in micro_batches:
            logprobs_N, entropy_N = self.logprobs(micro_batch)
            old_logprobs_N = logprobs_N.detach()
            importance_N = self._importance(old_logprobs_N, micro_batch)
            output = loss_function(
                logprobs_N,
                old_logprobs_N,
                micro_batch.advantages_N.to(logprobs_N.dtype),
                micro_batch.loss_weights_N.to(logprobs_N.dtype) * importance_N,
            )
            if not bool(output.loss.isfinite()):
                stats.bad_sample = _first_bad_sample(old_logprobs_N, micro_batch)
                return stats
            (output.loss / denominator).backward()
            metrics = {
                **output.metrics,
                "loss/policy": output.loss.detach(),
                "policy/entropy": entropy_N.detach().sum(),
                "mismatch/importance_weight_mean": importance_N.sum(),
            }
            _add_stats(stats, micro_batch, old_logprobs_N, metrics)
        return stats

    def logprobs(self, micro_batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """[N] log-probabilities of the targets, with grad, and [N] entropies, both in nats."""
        batch = micro_batch.to(self._decoder.embed_tokens.device)

        def attend(
            _layer: int, q_TND: torch.Tensor, k_TMD: torch.Tensor, v_TMD: torch.Tensor
        ) -> torch.Tensor:
            return packed_attention(q_TND, k_TMD, v_TMD, batch.layout)

        hidden_TH = self._decoder(batch.token_ids_T, batch.positions_T, attend)
        return linear_logprobs(
            hidden_TH[batch.source_rows_N],
            self._decoder.lm_head,
            batch.target_ids_N,
            temperature=self._temperature,
        )

    def _importance(self, old_logprobs_N: torch.Tensor, micro_batch: MicroBatch) -> torch.Tensor:
        if self._max_importance_weight == 0:
            return torch.ones_like(old_logprobs_N)
        rollout_logprobs_N = micro_batch.rollout_logprobs_N.to(old_logprobs_N)
        return importance_weights(
            old_logprobs_N, rollout_logprobs_N, max_weight=self._max_importance_weight
        )

    @torch.no_grad()
    def step(self, learning_rate: float) -> float:
        """AdamW on the master weights; returns the gradient's norm before clipping. NaN or inf: no update."""
        norm = float(torch.nn.utils.clip_grad_norm_(self._masters, self._max_grad_norm))
        if math.isfinite(norm):
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            self._optimizer.step()
            for parameter, master in zip(self._parameters, self._masters, strict=True):
                if master is not parameter:
                    parameter.copy_(master)
        self.clear_gradients()
        return norm

    def clear_gradients(self) -> None:
        """To zeros, not None: a batch without signal still moves by the optimiser's momentum."""
        for master in self._masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            else:
                master.grad.zero_()

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Weights under Hugging Face's names, in the compute type, in a fixed order."""
        for name, tensor in self._decoder.hf_tensors():
            yield name, tensor.detach()

    def state_dict(self) -> dict[str, Any]:
        return {"masters": self._masters, "optimizer": self._optimizer.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for parameter, master, saved in zip(
            self._parameters, self._masters, state["masters"], strict=True
        ):
            master.copy_(saved)
            parameter.copy_(saved)
        # a copy: the optimiser would update the caller's tensors in place
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


def _master_of(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    dtype = accumulate_dtype(parameter.dtype)
    return (
        parameter if dtype == parameter.dtype else torch.nn.Parameter(parameter.detach().to(dtype))
    )


def _move_gradient_to(master: torch.nn.Parameter):
    def move(parameter: torch.Tensor) -> None:
        assert master.grad is not None, "cleared to zeros, never to None"
        assert parameter.grad is not None, "called after accumulation"
        master.grad += parameter.grad
        parameter.grad = None

    return move


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
