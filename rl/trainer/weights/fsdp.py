"""FSDP2: fp32 masters, their gradients and their optimiser's state in equal shards, one per rank.

A layer's weights are gathered in the compute type when its forward begins, dropped when it ends, and gathered again for
its backward; its gradients are summed in fp32 and scattered after every micro-batch. What a rank needs of a model of P
parameters is 16 P / ranks bytes, and one layer.
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
        decoder: its weights and compute type.
        config: of the optimiser.
        ranks: among which it is sharded.
        head: trained with it, of a type of its own.
        ema_decay: of the weights' average, which is in shards, too; 0 keeps none.
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
        """AdamW on the shards; returns the gradient's norm before clipping. NaN or inf: no update."""
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
        """Copies: what was gathered is dropped when they are made."""
        assert isinstance(module, FSDPModule), "sharded when it was handed over"
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
        """Of a tensor as large as parameter `index`; counts of steps stay as they are."""
        like = self._masters[index]
        if tensor.shape != like.shape:
            return tensor
        assert isinstance(like, DTensor), "a parameter of a sharded module"
        return distribute_tensor(
            tensor.to(like.dtype), like.device_mesh, like.placements, src_data_rank=None
        )

    def _drop_gathered(self) -> None:
        """The embedding, the final norm and the head stay gathered after a forward, since the head is read behind it; after
        a step these copies would be old."""
        for module in self._modules:
            module.reshard()


def _sharded(module: torch.nn.Module, dtype: torch.dtype) -> FSDPModule:
    """The module, gathered in `dtype`, its gradients added up in the type to accumulate in."""
    module.to(accumulate_dtype(dtype))
    # inputs are left alone: a layer gets its angles in fp32, whatever it computes in
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
    """A state with every tensor changed; `index` is the number of the parameter that it belongs to."""
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
