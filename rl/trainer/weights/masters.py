"""fp32 master weights, with their gradients, their optimiser and their average. Base of replicated and FSDP weights."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from kernels.numerics import accumulate_dtype
from rl.trainer.batch.packing import MicroBatch
from rl.trainer.config import TrainerConfig
from rl.trainer.weights.base import Forward, HFTensors
from rl.trainer.weights.ema import WeightAverage
from rl.trainer.weights.optimizer import Optimizer

__all__ = ["MasterWeights"]

T = TypeVar("T")

logger = logging.getLogger("paceline")


class MasterWeights:
    """Trains parameters in place.

    Where the compute type is fp32 or float64, the parameters are the master weights themselves. In bf16 each parameter has an
    fp32 master: gradients are added to it in fp32 after every micro-batch, and the parameter gets the rounded master after
    every step.

    Args:
        parameters: all parameters that are trained.
        config: config of the optimiser.
        matrices: hidden matrices, which Muon trains, each with the row counts of the matrices fused in it.
        on_change: called after the parameters got new values.
        ema_decay: decay of the weights' average; 0 keeps no average.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        config: TrainerConfig,
        *,
        matrices: Mapping[torch.nn.Parameter, Sequence[int]] | None = None,
        on_change: Callable[[], None] | None = None,
        ema_decay: float = 0.0,
    ) -> None:
        self._max_grad_norm = config.max_grad_norm
        self._on_change = on_change
        self._parameters = list(parameters)
        self._masters = [_master_of(p) for p in self._parameters]
        pairs = list(zip(self._parameters, self._masters, strict=True))
        for parameter, master in pairs:
            if master is not parameter:
                parameter.register_post_accumulate_grad_hook(_move_gradient_to(master))
        sizes = {m: matrices[p] for p, m in pairs if matrices and p in matrices}
        self._optimizer = Optimizer(self._masters, sizes, config)
        self._average = WeightAverage(self._masters, decay=ema_decay) if ema_decay else None
        self.clear_gradients()

    def forward(self, function: Forward[T], micro_batch: MicroBatch) -> T:
        return function(micro_batch)

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        loss.backward()

    def read(
        self, module: torch.nn.Module, tensors: HFTensors
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors themselves, not copies."""
        return ((name, tensor.detach()) for name, tensor in tensors())

    @torch.no_grad()
    def step(self, learning_rate: float) -> float:
        """Update the weights; returns the gradient's norm before clipping. NaN or inf: no update."""
        norm = float(self._clip(self._masters))
        if math.isfinite(norm):
            self._optimizer.step(learning_rate)
            if self._average is not None:
                self._average.update()
            self._hand_out()
        self.clear_gradients()
        return norm

    def _clip(self, masters: list[torch.nn.Parameter]) -> torch.Tensor:
        return torch.nn.utils.clip_grad_norm_(masters, self._max_grad_norm)

    def clear_gradients(self) -> None:
        """Set gradients to zero, not None, so that momentum still applies when a batch has no signal."""
        for master in self._masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            else:
                master.grad.zero_()

    @property
    def has_average(self) -> bool:
        return self._average is not None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the parameters their average inside the block; afterwards they are what they were, bit for bit."""
        assert self._average is not None, "trainer.ema_decay is above 0"
        self._average.swap()
        self._hand_out()
        try:
            yield
        finally:
            self._average.swap()
            self._hand_out()

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "masters": self._masters,
            "optimizer": self._optimizer.state_dict(),
        }
        if self._average is not None:
            state["average"] = self._average.tensors
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy the state that another run saved.

        Raises:
            ValueError: that run trained other tensors, or used another optimiser.
        """
        saved, own = _shapes(state["masters"]), _shapes(self._masters)
        if saved != own:
            raise ValueError(
                f"resume_from must be a run that trained the same tensors: it trained {len(saved)} with "
                f"{sum(map(math.prod, saved)):,} parameters, this one has {len(own)} with "
                f"{sum(map(math.prod, own)):,}; keep its model and its trainer.lora"
            )
        self._optimizer.load_state_dict(state["optimizer"])
        for master, tensor in zip(self._masters, state["masters"], strict=True):
            master.copy_(tensor)
        if self._average is not None:
            if "average" not in state:
                logger.warning(
                    "the resumed run had trainer.ema_decay=0, so the average starts from its last weights"
                )
            self._average.load(state.get("average", self._masters))
        self._hand_out()

    @torch.no_grad()
    def _hand_out(self) -> None:
        """Copy the masters' values to the parameters, then call `on_change`."""
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            if master is not parameter:
                parameter.copy_(master)
        if self._on_change is not None:
            self._on_change()


def _shapes(tensors: Sequence[torch.Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors]


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
