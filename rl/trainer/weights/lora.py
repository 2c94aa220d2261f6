"""LoRA (https://arxiv.org/abs/2106.09685): W + s B A, s = alpha / rank; A and B are trained, W is not.

The forward multiplies by the merged weight, rounded once to the compute type: the very tensor that is published, so
trainer and engine agree as they do without adapters. With y = x W'^T and g the gradient of y,

    d B = s g^T (x A^T),   d A = s (g B)^T x,   d x = g W'

and no gradient of the size of W is ever formed. The rounding of W' passes the gradient as if it were not there, as the
rounding of fp32 masters to bf16 parameters does. We differ from the paper: no dropout, which no engine could repeat.

Files are those of the library peft: `adapter_config.json` and `adapter_model.safetensors`.

Shape legend: T = rows, I = in features, O = out features, R = rank.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from kernels.linear import linear
from kernels.numerics import accumulate_dtype
from rl.trainer.config import LoRAConfig
from rl.trainer.weights.adapter_files import ADAPTER_CONFIG, ADAPTER_TENSORS, read_adapter
from rollout.models.decoder import Decoder
from rollout.models.layers import Linear

__all__ = ["Adapter", "Adapters", "LoRALinear", "count_adapter_parameters"]

_PEFT_PREFIX = "base_model.model."


class Adapter(nn.Module):
    """Factors of one matrix, in the type that gradients are accumulated in. Their product starts at zero.

    Args:
        rows: the matrix's rows of the fused weight.
        in_features: input features of the matrix.
        rank: R.
        like: a tensor of the compute type, on the device.
        generator: draws the random A, uniform within 1 / sqrt(in_features), as peft does.
    """

    def __init__(
        self,
        rows: slice,
        in_features: int,
        rank: int,
        *,
        like: torch.Tensor,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.rows = rows
        dtype = accumulate_dtype(like.dtype)
        uniform = torch.rand(rank, in_features, generator=generator, dtype=torch.float64) * 2 - 1
        a = (uniform * in_features**-0.5).to(dtype)
        self.a = nn.Parameter(a.to(like.device))  # [R, I]
        zeros = torch.zeros(rows.stop - rows.start, rank, dtype=dtype, device=like.device)
        self.b = nn.Parameter(zeros)  # [O, R]


class LoRALinear(Linear):
    """A `Linear` whose weight is the base's with its adapters merged; only the adapters are trained.

    Args:
        base: its weight and bias are taken over.
        scale: s.
        adapters: adapters of the matrices that have one.
    """

    def __init__(self, base: Linear, *, scale: float, adapters: list[Adapter]) -> None:
        nn.Module.__init__(self)
        self.weight = base.weight
        self.bias = base.bias
        self.scale = scale
        self.adapters = nn.ModuleList(adapters)
        # a plain attribute: nothing that walks over parameters or buffers shall meet it
        self._base = base.weight.detach().clone()

    def forward(self, x: torch.Tensor, packed_weight: torch.Tensor | None = None) -> torch.Tensor:
        assert packed_weight is None, "the engine's, which has no adapters"
        rows = [adapter.rows for adapter in self.each_adapter]
        factors = [factor for adapter in self.each_adapter for factor in (adapter.a, adapter.b)]
        return _LoRALinear.apply(  # pyrefly: ignore
            x, self.weight, self.bias, self.scale, rows, *factors
        )

    @property
    def each_adapter(self) -> Iterator[Adapter]:
        for adapter in self.adapters:
            assert isinstance(adapter, Adapter), "adapters holds only adapters"
            yield adapter

    @torch.no_grad()
    def merge(self) -> None:
        """Merge the adapters into the weight: summed in the accumulation type, rounded once."""
        for adapter in self.each_adapter:
            update = (adapter.b @ adapter.a).mul_(self.scale)
            merged = update.add_(self._base[adapter.rows])
            self.weight[adapter.rows] = merged.to(self.weight.dtype)


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TI, weight_OI, bias_O, scale, rows, *factors):  # pyrefly: ignore
        ctx.save_for_backward(x_TI, weight_OI, *factors)
        ctx.scale, ctx.rows = scale, rows
        out_TO = linear(x_TI, weight_OI, bias_O)
        # where rows are padded it is a slice, to which autograd lets nobody add in place
        return out_TO.clone() if out_TO._is_view() else out_TO

    @staticmethod
    def backward(ctx, grad_TO):  # pyrefly: ignore
        x_TI, weight_OI, *factors = ctx.saved_tensors
        grads = []
        for rows, a_RI, b_OR in zip(ctx.rows, factors[::2], factors[1::2], strict=True):
            grad = grad_TO[:, rows]
            low_TR = grad @ b_OR.to(grad.dtype)
            grads.append((low_TR.T @ x_TI).to(a_RI.dtype).mul_(ctx.scale))
            low_TR = x_TI @ a_RI.T.to(x_TI.dtype)
            grads.append((grad.T @ low_TR).to(b_OR.dtype).mul_(ctx.scale))
        grad_x = grad_TO @ weight_OI if ctx.needs_input_grad[0] else None
        return grad_x, None, None, None, None, *grads


class Adapters:
    """Adapters of a decoder. Creating them freezes it and replaces each `Linear` that has an adapter by a `LoRALinear`.

    Args:
        decoder: changed in place; its weights are the base.
        config: rank above 0.
        base: the name or directory of the base, for adapter_config.json.
        seed: seed of the random factors.

    Raises:
        ValueError: `config.path` holds an adapter of another rank, scale or shape.
    """

    def __init__(self, decoder: Decoder, config: LoRAConfig, *, base: str, seed: int) -> None:
        self._config = config
        self._base = base
        self._linears: list[LoRALinear] = []
        self._named: list[tuple[str, Adapter]] = []  # by peft's names
        generator = torch.Generator().manual_seed(seed)
        decoder.requires_grad_(False)
        for layer in decoder.decoder_layers:
            for linear_name, matrices in layer.projections():
                plain: Linear = getattr(layer, linear_name)
                made: list[Adapter] = []
                for name, rows in _rows_of(matrices).items():
                    if _is_target(name, config):
                        in_features, like = plain.weight.shape[1], plain.weight
                        adapter = Adapter(
                            rows, in_features, config.rank, like=like, generator=generator
                        )
                        made.append(adapter)
                        self._named.append((f"{_PEFT_PREFIX}{layer.hf_prefix}{name}", adapter))
                if made:
                    adapted = LoRALinear(plain, scale=config.alpha / config.rank, adapters=made)
                    setattr(layer, linear_name, adapted)
                    self._linears.append(adapted)
        if config.path:
            self.load(Path(config.path))

    def merge(self) -> None:
        """Merge all adapters; called after every change of the factors."""
        for adapted in self._linears:
            adapted.merge()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the factors by peft's names."""
        return {
            f"{name}.lora_{factor.upper()}.weight": getattr(adapter, factor).detach()
            for name, adapter in self._named
            for factor in ("a", "b")
        }

    def save(self, directory: Path) -> None:
        """Write a new directory that `peft.PeftModel.from_pretrained` reads."""
        directory.mkdir()
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self._base,
            "r": self._config.rank,
            "lora_alpha": self._config.alpha,
            "lora_dropout": 0.0,
            "target_modules": list(self._config.targets),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        }
        (directory / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.tensors().items()}
        save_file(tensors, str(directory / ADAPTER_TENSORS), metadata={"format": "pt"})

    @torch.no_grad()
    def load(self, directory: Path) -> None:
        """Load the factors of an adapter in peft's format.

        Raises:
            ValueError: there is none, or it is of another rank, scale, kind or shape.
        """
        saved = read_adapter(directory, rank=self._config.rank, alpha=self._config.alpha)
        own = self.tensors()
        if {n: t.shape for n, t in saved.items()} != {n: t.shape for n, t in own.items()}:
            differing = sorted(saved.keys() ^ own.keys()) or "the same names in other shapes"
            raise ValueError(
                f"trainer.lora.path must hold the matrices of trainer.lora.targets of this model, got {len(saved)} "
                f"tensors instead of {len(own)} in {directory}; differing: {differing[:4]}"
            )
        for name, tensor in own.items():
            tensor.copy_(saved[name])
        self.merge()


def count_adapter_parameters(decoder: Decoder, config: LoRAConfig) -> int:
    """Count the parameters of all adapters that `config` would give a decoder."""
    return sum(
        config.rank * (getattr(layer, linear_name).weight.shape[1] + rows.stop - rows.start)
        for layer in decoder.decoder_layers
        for linear_name, matrices in layer.projections()
        for name, rows in _rows_of(matrices).items()
        if _is_target(name, config)
    )


def _rows_of(matrices: dict[str, int]) -> dict[str, slice]:
    """Return the rows of each matrix in the weight that they are fused in."""
    found, start = {}, 0
    for name, size in matrices.items():
        found[name] = slice(start, start + size)
        start += size
    return found


def _is_target(name: str, config: LoRAConfig) -> bool:
    return name.rpartition(".")[2] in config.targets
