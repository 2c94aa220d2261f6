"""Layers of a dense decoder, on a packed [T, hidden] layout; their tensors have Hugging Face's names.

Query, key and value weights are one parameter, and so are gate and up, which saves matrix products.

Shape legend: T = packed tokens, H = hidden size, N = query heads, M = KV heads, D = width of a head.
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from kernels.int8_linear import int8_linear
from kernels.linear import linear
from kernels.rms_norm import rms_norm
from kernels.rope import rope
from kernels.swiglu import swiglu
from rollout.models.decoder_spec import DecoderSpec

__all__ = ["Attend", "DecoderLayer", "Int8Linear", "Linear"]

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Attention function: (layer, q [T, N, D], k [T, M, D], v [T, M, D]) -> [T, N, D]."""


class Linear(nn.Module):
    """Weight [out, in] with an optional bias, multiplied row by row (`kernels.linear`)."""

    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: torch.Tensor, packed_weight: torch.Tensor | None = None) -> torch.Tensor:
        return linear(x, self.weight, self.bias, packed_weight)

    def named_rows(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (suffix of its name, tensor with one row or element per output)."""
        yield "weight", self.weight
        if self.bias is not None:
            yield "bias", self.bias


class Int8Linear(nn.Module):
    """Linear with an 8-bit weight and one scale per output (`kernels.int8_linear`), for engines on a CPU. It has
    no gradient."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        # plain attributes, so that `.to(bfloat16)` leaves the scales in float32
        self.weight = torch.empty(out_features, in_features, dtype=torch.int8, device="cpu")
        self.scale = torch.empty(out_features, dtype=torch.float32, device="cpu")
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: torch.Tensor, packed_weight: torch.Tensor | None = None) -> torch.Tensor:
        return int8_linear(x, self.weight, self.scale, self.bias, packed_weight)

    def named_rows(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "weight", self.weight
        yield "weight_scale", self.scale
        if self.bias is not None:
            yield "bias", self.bias


class DecoderLayer(nn.Module):
    """Attention and MLP, each applied after its norm and added to the residual stream."""

    def __init__(
        self, spec: DecoderSpec, index: int, linear_type: type[Linear] | type[Int8Linear]
    ) -> None:
        super().__init__()
        self.spec = spec
        self.index = index
        width = spec.head_dim * spec.num_heads
        kv_width = spec.head_dim * spec.num_kv_heads
        self.input_norm = nn.Parameter(torch.empty(spec.hidden_size))
        self.qkv_proj = linear_type(spec.hidden_size, width + 2 * kv_width, bias=spec.qkv_bias)
        self.o_proj = linear_type(width, spec.hidden_size, bias=spec.o_bias)
        self.post_attention_norm = nn.Parameter(torch.empty(spec.hidden_size))
        self.gate_up_proj = linear_type(
            spec.hidden_size, 2 * spec.intermediate_size, bias=spec.mlp_bias
        )
        self.down_proj = linear_type(spec.intermediate_size, spec.hidden_size, bias=spec.mlp_bias)
        self.q_norm = nn.Parameter(torch.empty(spec.head_dim)) if spec.qk_norm else None
        self.k_norm = nn.Parameter(torch.empty(spec.head_dim)) if spec.qk_norm else None

    def forward(self, x_TH: torch.Tensor, cos_sin_TD: torch.Tensor, attend: Attend) -> torch.Tensor:
        eps = self.spec.rms_norm_eps
        # the residual is added in place to the output of a linear, which no backward reads
        attended = self._attention(rms_norm(x_TH, self.input_norm, eps=eps), cos_sin_TD, attend)
        x_TH = attended.add_(x_TH)
        hidden = rms_norm(x_TH, self.post_attention_norm, eps=eps)
        return self.down_proj(swiglu(self.gate_up_proj(hidden))).add_(x_TH)

    def _attention(
        self, x_TH: torch.Tensor, cos_sin_TD: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        spec = self.spec
        heads = self.qkv_proj(x_TH).view(x_TH.shape[0], -1, spec.head_dim)
        q, k, v = heads.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q = rms_norm(q, self.q_norm, eps=spec.rms_norm_eps)
            k = rms_norm(k, self.k_norm, eps=spec.rms_norm_eps)
        out = attend(self.index, rope(q, cos_sin_TD), rope(k, cos_sin_TD), v)
        return self.o_proj(out.flatten(1))

    def projections(self) -> Iterator[tuple[str, dict[str, int]]]:
        """Yield (name of a linear of this layer, rows of each matrix fused in it by Hugging Face's names)."""
        spec = self.spec
        q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        yield "qkv_proj", {"self_attn.q_proj": q, "self_attn.k_proj": kv, "self_attn.v_proj": kv}
        yield "o_proj", {"self_attn.o_proj": spec.hidden_size}
        sizes = {"mlp.gate_proj": spec.intermediate_size, "mlp.up_proj": spec.intermediate_size}
        yield "gate_up_proj", sizes
        yield "down_proj", {"mlp.down_proj": spec.hidden_size}

    @property
    def hf_prefix(self) -> str:
        """Prefix of the names of this layer's tensors in a Hugging Face checkpoint."""
        return f"model.layers.{self.index}."

    def hf_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (Hugging Face's name, parameter or slice of one) for each tensor of this layer."""
        prefix = self.hf_prefix
        yield f"{prefix}input_layernorm.weight", self.input_norm
        yield f"{prefix}post_attention_layernorm.weight", self.post_attention_norm
        for linear_name, matrices in self.projections():
            for suffix, rows in getattr(self, linear_name).named_rows():
                parts = rows.split(list(matrices.values()))
                for name, part in zip(matrices, parts, strict=True):
                    yield f"{prefix}{name}.{suffix}", part
        if self.q_norm is not None and self.k_norm is not None:
            yield f"{prefix}self_attn.q_norm.weight", self.q_norm
            yield f"{prefix}self_attn.k_norm.weight", self.k_norm
