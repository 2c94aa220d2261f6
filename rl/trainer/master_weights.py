"""fp32 master weights of a module, their gradients, and AdamW."""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from kernels.numerics import accumulate_dtype
from rl.config import TrainerConfig
from rl.trainer.packing import MicroBatch
from rl.trainer.ranks import ALONE, Ranks
from rl.trainer.trained_weights import HFTensors, Logprobs, LogprobsAndEntropies

__all__ = ["MasterWeights", "make_adamw"]


class MasterWeights:
    """Trains parameters in place.

    Where the compute type is fp32 (or float64), the parameters are the master weights themselves; in bf16 each has an fp32
    master, gradients are added to it in fp32 after every micro-batch, and the parameter gets the rounded master
    after every step.

    Of several ranks each holds all weights; before a step the gradients are summed, in the masters' type.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        config: TrainerConfig,
        *,
        ranks: Ranks = ALONE,
    ) -> None:
        self._ranks = ranks
        self._max_grad_norm = config.max_grad_norm
        self._parameters = list(parameters)
        self._masters = [_master_of(p) for p in self._parameters]
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            if master is not parameter:
                parameter.register_post_accumulate_grad_hook(_move_gradient_to(master))
        self._optimizer = make_adamw(self._masters, config)
        self.clear_gradients()

    def forward(self, logprobs: Logprobs, micro_batch: MicroBatch) -> LogprobsAndEntropies:
        return logprobs(micro_batch)

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        loss.backward()

    def read(
        self, module: torch.nn.Module, tensors: HFTensors
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors themselves, not copies."""
        return ((name, tensor.detach()) for name, tensor in tensors())

    @torch.no_grad()
    def step(self, learning_rate: float) -> float:
        """AdamW on the master weights; returns the gradient's norm before clipping. NaN or inf: no update."""
        self._ranks.add_up([m.grad for m in self._masters if m.grad is not None])
        norm = float(self._clip(self._masters))
        if math.isfinite(norm):
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            self._optimizer.step()
            for parameter, master in zip(self._parameters, self._masters, strict=True):
                if master is not parameter:
                    parameter.copy_(master)
        self.clear_gradients()
        return norm

    def _clip(self, masters: list[torch.nn.Parameter]) -> torch.Tensor:
        return torch.nn.utils.clip_grad_norm_(masters, self._max_grad_norm)

    def clear_gradients(self) -> None:
        """To zeros, not None: a batch without signal still moves by the optimiser's momentum."""
        for master in self._masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            else:
                master.grad.zero_()

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


def make_adamw(
    parameters: Sequence[torch.nn.Parameter], config: TrainerConfig
) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameters,
        lr=0.0,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
        fused=True,
    )


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
