"""Weights sharded by FSDP2: fp32 masters, their gradients and their optimiser's state in equal shards, one per rank.

A layer's weights are gathered in the compute type when its forward begins, dropped when it ends, and gathered again for
its backward; its gradients are summed in fp32 and scattered after every micro-batch. For a model of P parameters a
rank needs 16 P / ranks bytes, and one gathered layer.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from kernels.numerics import accumulate_dtype
from rl.trainer.config import TrainerConfig
from rl.trainer.ranks.group import Ranks
from rl.trainer.weights.base import HFTensors
from rl.trainer.weights.masters import MasterWeights
from rollout.models.decoder import Decoder

__all__ = ["FSDPWeights"]


class FSDPWeights(MasterWeights):
    """Shards a decoder in place, by layer. The masters are its parameters.

    Args:
        decoder: has the weights and the compute type.
        config: settings of the optimiser.
        ranks: processes that hold a shard each.
        head: trained with the decoder, in a type of its own.
        ema_decay: decay of the weights' average, which is sharded, too; 0 keeps no average.
    """

    def __init__(
        self,
        decoder: Decoder,
        config: TrainerConfig,
        *,
        ranks: Ranks,
        head: torch.nn.Module | None = None,
        ema_decay: float = 0.0,
    ) -> None:
        dtype = decoder.embed_tokens.dtype
        self._modules = [_sharded(module, dtype) for module in (*decoder.layers, decoder)]
        parameters = [*decoder.parameters()]
        if head is not None:
            self._modules.append(_sharded(head, next(head.parameters()).dtype))
            parameters += head.parameters()
        super().__init__(parameters, config, ema_decay=ema_decay)
        # the gradients are summed where they arise
        self._first = ranks.is_first

    def step(self, learning_rate: float) -> float:
        """Update the shards by AdamW; returns the gradient's norm before clipping. NaN or inf: no update."""
        self._drop_gathered()
        return super().step(learning_rate)

    def _hand_out(self) -> None:
        self._drop_gathered()
        super()._hand_out()

    def _clip(self, masters: list[torch.nn.Parameter]) -> torch.Tensor:
        norm = super()._clip(masters)
        assert isinstance(norm, DTensor), "of sharded gradients"
        return norm.full_tensor()

    def read(
        self, module: torch.nn.Module, tensors: HFTensors
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield copies, because gathered tensors are dropped afterwards."""
        assert isinstance(module, FSDPModule), "the module must be sharded already"
        self._drop_gathered()
        module.unshard()
        copies = [(name, tensor.detach().clone()) for name, tensor in tensors()]
        module.reshard()
        return iter(copies)

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        self._drop_gathered()
        state = _each_tensor(super().state_dict(), self._whole)
        return state if self._first else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(_each_tensor(state, self._own_shard))

    def _whole(self, tensor: torch.Tensor, _index: int) -> torch.Tensor | None:
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        return whole if self._first else None

    def _own_shard(self, tensor: torch.Tensor, index: int) -> torch.Tensor:
        """Return this rank's shard of a tensor shaped like parameter `index`; counts of steps stay as they are."""
        like = self._masters[index]
        if tensor.shape != like.shape:
            return tensor
        assert isinstance(like, DTensor), "a parameter of a sharded module"
        return distribute_tensor(
            tensor.to(like.dtype), like.device_mesh, like.placements, src_data_rank=None
        )

    def _drop_gathered(self) -> None:
        """Drop gathered copies. Embedding, final norm and head stay gathered after a forward, because the head is read later; after
        a step these copies would be stale."""
        for module in self._modules:
            module.reshard()


def _sharded(module: torch.nn.Module, dtype: torch.dtype) -> FSDPModule:
    """Shard a module: it is gathered in `dtype`, and its gradients are summed in the accumulation type."""
    module.to(accumulate_dtype(dtype))
    # inputs keep their type: a layer gets its angles in fp32, whatever it computes in
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=accumulate_dtype(dtype), cast_forward_inputs=False
    )
    sharded = fully_shard(module, mp_policy=policy)
    sharded.set_gradient_divide_factor(1.0)  # a sum over ranks, not their mean
    sharded.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    return sharded


def _each_tensor(
    state: Any, change: Callable[[torch.Tensor, int], torch.Tensor | None], index: int = -1
) -> Any:
    """Apply `change` to every tensor of a state; `index` is the number of the parameter that a tensor belongs to."""
    if isinstance(state, torch.Tensor):
        return change(state, index)
    if isinstance(state, Mapping):
        return {
            key: _each_tensor(value, change, key if isinstance(key, int) else index)
            for key, value in state.items()
        }
    if isinstance(state, list):
        return [_each_tensor(value, change, i) for i, value in enumerate(state)]
    return state
