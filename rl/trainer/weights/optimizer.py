"""Optimisers over master weights: AdamW, or Muon for matrices and AdamW for the rest."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rl.trainer.config import OptimizerKind, TrainerConfig
from rl.trainer.weights.lora import LoRALinear
from rollout.models.decoder import Decoder

__all__ = ["Optimizer", "hidden_matrices", "make_adamw"]


def hidden_matrices(decoder: Decoder) -> dict[torch.nn.Parameter, list[int]]:
    """Return the trained matrices of the layers, with the rows of each matrix that is fused in them."""
    found: dict[torch.nn.Parameter, list[int]] = {}
    for layer in decoder.decoder_layers:
        for linear_name, matrices in layer.projections():
            linear = getattr(layer, linear_name)
            if linear.weight.requires_grad:
                found[linear.weight] = list(matrices.values())
            if isinstance(linear, LoRALinear):
                found |= {
                    f: [len(f)] for adapter in linear.each_adapter for f in (adapter.a, adapter.b)
                }
    return found


class Optimizer:
    """AdamW, or Muon and AdamW with one learning rate: Muon's step is scaled to the size that AdamW's has (https://arxiv.org/abs/2502.16982,
    section 2.2: 0.2 sqrt(max(rows, columns))).

    Args:
        masters: master weights, whose gradient tensors stay the same objects.
        matrices: hidden matrices among the masters, each with the row counts of the matrices fused in it. Muon makes every one
            of them orthogonal by itself: the update of a query matrix does not depend on the values'.
        config: which optimiser, and its settings.
    """

    def __init__(
        self,
        masters: Sequence[torch.nn.Parameter],
        matrices: Mapping[torch.nn.Parameter, Sequence[int]],
        config: TrainerConfig,
    ) -> None:
        is_muon = config.optimizer is OptimizerKind.muon
        fused = [m for m in masters if is_muon and m in matrices]
        rest = [m for m in masters if not (is_muon and m in matrices)]
        self._parts: list[tuple[torch.Tensor, torch.nn.Parameter, slice]] = []
        for master in fused:
            start = 0
            for size in matrices[master]:
                rows = slice(start, start + size)
                self._parts.append((master.detach()[rows], master, rows))
                start += size
            assert start == len(master), "the matrices are all rows of their parameter"
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        if rest:
            self._optimizers["adamw"] = make_adamw(rest, config)
        if self._parts:
            self._optimizers["muon"] = torch.optim.Muon(
                [part for part, _, _ in self._parts],
                lr=0.0,
                weight_decay=config.weight_decay,
                momentum=config.muon_momentum,
                adjust_lr_fn="match_rms_adamw",
            )

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move the masters against their gradients."""
        for part, master, rows in self._parts:
            assert master.grad is not None, "cleared to zeros, never to None"
            part.grad = master.grad[rows]
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy the state that another run saved.

        Raises:
            ValueError: that run used another kind of optimiser.
        """
        if state.keys() != self._optimizers.keys():
            raise ValueError(
                f"trainer.optimizer must be that of the run that is resumed, {' and '.join(state)}, got "
                f"{' and '.join(self._optimizers)}; or start from its weights: model=hf model.path=<run>/weights/v<version>"
            )
        for name, optimizer in self._optimizers.items():
            # a copy: the optimiser would update the caller's tensors in place
            optimizer.load_state_dict(copy.deepcopy(state[name]))


def make_adamw(masters: Sequence[torch.nn.Parameter], config: TrainerConfig) -> torch.optim.AdamW:
    """Make an AdamW optimiser; the trainer sets its learning rate before every step."""
    return torch.optim.AdamW(
        masters,
        lr=0.0,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
        fused=True,
    )
