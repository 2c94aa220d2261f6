"""Weights held by DeepSpeed: ZeRO 0 to 3, with the optimiser's state in the host's memory if the config says so.

DeepSpeed averages gradients over ranks, so losses are multiplied by the number of ranks. It counts micro-batches itself, so the
last one is announced explicitly. It clips gradients, and skips a step whose gradient is not finite. Checkpoints hold whole
tensors in our own format, so that any other kind of weights can load them.
"""

import logging
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch

from rl.trainer.batch.forward import policy_logprobs, target_states
from rl.trainer.batch.packing import MicroBatch, fill_up
from rl.trainer.config import TrainerConfig
from rl.trainer.ranks.group import Ranks
from rl.trainer.weights.base import Forward, HFTensors
from rl.trainer.weights.optimizer import make_adamw
from rollout.models.decoder import Decoder

__all__ = ["DeepSpeedWeights"]

T = TypeVar("T")

_MOMENTS = ("exp_avg", "exp_avg_sq")
_KEPT_WHOLE = 10_000
"""Elements up to which ZeRO 3 leaves a parameter whole: norms and biases."""


class _Model(torch.nn.Module):
    """The module given to DeepSpeed, which gathers parameters around the forward of their module."""

    def __init__(self, decoder: Decoder, head: torch.nn.Module | None) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = head

    def forward(self, function: Forward[T], micro_batch: MicroBatch) -> T:
        return function(micro_batch)


class DeepSpeedWeights:
    """Hands a decoder to DeepSpeed, in place.

    Args:
        decoder: has the weights and the compute type, float32 or bfloat16.
        config: settings of the optimiser, and `zero_stage`.
        ranks: the process group.
        head: trained with the decoder; DeepSpeed gives it the decoder's compute type.
    """

    def __init__(
        self,
        decoder: Decoder,
        config: TrainerConfig,
        *,
        ranks: Ranks,
        head: torch.nn.Module | None = None,
    ) -> None:
        deepspeed = _import_deepspeed()
        self._gathered = deepspeed.zero.GatheredParameters
        self._fragments = deepspeed.utils
        self._decoder = decoder
        self._head = head
        self._stage = config.zero_stage
        self._max_grad_norm = config.max_grad_norm
        self._ranks = ranks
        model = _Model(decoder, head)
        self._parameters = list(model.parameters())
        # wrapped by DeepSpeed's own optimiser, which gives it this rank's part of the masters
        self._adamw = make_adamw(self._parameters, config)
        dtype = decoder.embed_tokens.dtype
        self._engine, *_ = deepspeed.initialize(
            model=model, optimizer=self._adamw, config=_settings(config, dtype)
        )
        if self._stage == 3:
            # the head is read after the decoder's forward
            deepspeed.zero.register_external_parameter(model, decoder.lm_head)

    def forward(self, function: Forward[T], micro_batch: MicroBatch) -> T:
        return self._engine(function, micro_batch)

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss * self._ranks.count)

    def step(self, learning_rate: float) -> float:
        """Update by AdamW; returns the gradient's norm before clipping. NaN or inf: no update."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self._stage == 0:
            return self._whole_step()
        self._engine.step()
        return (
            math.nan
            if self._engine.optimizer.overflow
            else float(self._engine.get_global_grad_norm())
        )

    def _whole_step(self) -> float:
        """Step without ZeRO; skips the step on NaN gradients, which DeepSpeed does not do there."""
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm))
        if math.isfinite(norm):
            self._engine.step()
        else:
            self._engine.zero_grad()
        return norm

    def clear_gradients(self) -> None:
        """Drop a gradient that is not finite: DeepSpeed does so when it is told to step."""
        norm = self.step(0.0)
        assert not math.isfinite(norm), "no step was made on a gradient to be dropped"

    def read(
        self, module: torch.nn.Module, tensors: HFTensors
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors; in stage 3 copies, because gathered tensors are dropped again."""
        if self._stage < 3:
            return ((name, tensor.detach()) for name, tensor in tensors())
        is_decoder = isinstance(module, Decoder)
        own = [*module.parameters(recurse=not is_decoder)] + (
            [module.lm_head] if is_decoder else []
        )
        with self._gathered(own):
            return iter([(name, tensor.detach().clone()) for name, tensor in tensors()])

    def state_dict(self) -> dict[str, Any]:
        masters: list[torch.Tensor | None] = []
        moments: dict[int, dict[str, torch.Tensor | None]] = {}
        counts = [own["step"] for own in self._adamw.state.values()]  # all alike
        for index, parameter in enumerate(self._parameters):
            masters.append(self._if_first(self._master(parameter)))
            if counts:
                whole = {n: self._if_first(self._moment(parameter, n)) for n in _MOMENTS}
                moments[index] = {"step": counts[0].clone(), **whole}
        if not self._ranks.is_first:
            return {}
        (group,) = self._adamw.param_groups
        groups = [{**group, "params": list(range(len(masters)))}]
        adamw = {"state": moments, "param_groups": groups}
        return {"masters": masters, "optimizer": {"adamw": adamw}}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        saved = state["optimizer"]["adamw"]["state"]
        if saved and not self._adamw.state:
            self._make_moments()
        for index, parameter in enumerate(self._parameters):
            self._set_master(parameter, state["masters"][index])
            for name in _MOMENTS if saved else ():
                self._set_moment(parameter, name, saved[index][name])
        for own in self._adamw.state.values():
            own["step"].copy_(saved[0]["step"])

    def _make_moments(self) -> None:
        """Create the optimiser's moments by a step with a gradient and a learning rate of 0."""
        with torch.enable_grad():
            (filler,) = fill_up([], 1)
            self.backward(self.forward(self._anything, filler), is_last=True)
        self.step(0.0)

    def _anything(self, micro_batch: MicroBatch) -> torch.Tensor:
        """Return a number that depends on every parameter."""
        logprobs_N, _ = policy_logprobs(self._decoder, micro_batch, temperature=1.0)
        if self._head is None:
            return logprobs_N.sum()
        return logprobs_N.sum() + self._head(target_states(self._decoder, micro_batch)).sum()

    def _master(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        if self._stage == 0:
            return parameter.detach()
        return self._fragments.safe_get_full_fp32_param(parameter)

    def _moment(self, parameter: torch.nn.Parameter, name: str) -> torch.Tensor:
        if self._stage == 0:
            return self._adamw.state[parameter][name]
        return self._fragments.safe_get_full_optimizer_state(parameter, name)

    def _set_master(self, parameter: torch.nn.Parameter, master: torch.Tensor) -> None:
        if self._stage > 0:
            self._fragments.safe_set_full_fp32_param(parameter, master)
        # the parameter beside its master; in stage 3 the first rank's value becomes everyone's shard
        shards = [parameter] if self._stage == 3 else []
        with self._gathered(shards, modifier_rank=0):
            parameter.data.copy_(master)

    def _set_moment(self, parameter: torch.nn.Parameter, name: str, moment: torch.Tensor) -> None:
        if self._stage == 0:
            self._adamw.state[parameter][name].copy_(moment)
        else:
            self._fragments.safe_set_full_optimizer_state(parameter, moment, name)

    def _if_first(self, tensor: torch.Tensor) -> torch.Tensor | None:
        return tensor if self._ranks.is_first else None


def _import_deepspeed() -> Any:
    import deepspeed

    os.environ.setdefault("LOCAL_RANK", "0")  # it insists; torchrun sets it
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # compiled at the first start, in half a minute, to sum over shared memory on CPUs; gloo does
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _settings(config: TrainerConfig, dtype: torch.dtype) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "stage3_param_persistence_threshold": _KEPT_WHOLE,
    }
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        # ours count tokens, and the last of a step is announced
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm if config.zero_stage else 0.0,
        "zero_optimization": zero,
        "bf16": {"enabled": dtype is torch.bfloat16},
        # torch's AdamW, whose numbers are those of the other trainers; DeepSpeed's own would be compiled first
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
