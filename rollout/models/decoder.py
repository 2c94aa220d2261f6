"""One decoder for trainer and engine, on a packed [T, hidden] layout.

The two users differ only in `attend`: the trainer's attends over packed keys with gradients, the engine's
writes a paged cache and attends over that. Query, key and value weights are one parameter, and so are gate
and up: fewer GEMMs. `hf_tensors` shows every parameter, or its slice, under Hugging Face's own name; loading,
saving and weight sync all go through it.

Shape legend: T = packed tokens, H = hidden size, N = query heads, M = KV heads, D = width of a head.
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from kernels.linear import linear
from kernels.rms_norm import rms_norm
from kernels.rope import rope, rope_table
from kernels.swiglu import swiglu
from rollout.models.spec import DecoderSpec

__all__ = ["Attend", "Decoder"]

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(layer, q [T, N, D], k [T, M, D], v [T, M, D]) -> [T, N, D]."""


class Linear(nn.Module):
    """A weight [out, in] and perhaps a bias, multiplied row by row (`kernels.linear`)."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind its norm and added to the residual stream."""

    def __init__(self, spec: DecoderSpec, index: int) -> None:
        super().__init__()
        self.spec = spec
        self.index = index
        width = spec.head_dim * spec.num_heads
        kv_width = spec.head_dim * spec.num_kv_heads
        self.input_norm = nn.Parameter(torch.empty(spec.hidden_size))
        self.qkv_proj = Linear(spec.hidden_size, width + 2 * kv_width, bias=spec.qkv_bias)
        self.o_proj = Linear(width, spec.hidden_size, bias=spec.o_bias)
        self.post_attention_norm = nn.Parameter(torch.empty(spec.hidden_size))
        self.gate_up_proj = Linear(spec.hidden_size, 2 * spec.intermediate_size, bias=spec.mlp_bias)
        self.down_proj = Linear(spec.intermediate_size, spec.hidden_size, bias=spec.mlp_bias)
        self.q_norm = nn.Parameter(torch.empty(spec.head_dim)) if spec.qk_norm else None
        self.k_norm = nn.Parameter(torch.empty(spec.head_dim)) if spec.qk_norm else None

    def forward(self, x_TH: torch.Tensor, cos_sin_TD: torch.Tensor, attend: Attend) -> torch.Tensor:
        eps = self.spec.rms_norm_eps
        # the residual is added in place, to the output of a linear, which no backward reads
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

    def hf_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(Hugging Face's name, parameter or slice of one)."""
        spec = self.spec
        prefix = f"model.layers.{self.index}."
        q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        yield f"{prefix}input_layernorm.weight", self.input_norm
        yield f"{prefix}post_attention_layernorm.weight", self.post_attention_norm
        parts = [
            (
                self.qkv_proj,
                [q, kv, kv],
                ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            ),
            (self.o_proj, [spec.hidden_size], ["self_attn.o_proj"]),
            (self.gate_up_proj, [spec.intermediate_size] * 2, ["mlp.gate_proj", "mlp.up_proj"]),
            (self.down_proj, [spec.hidden_size], ["mlp.down_proj"]),
        ]
        for fused, sizes, names in parts:
            for name, weight in zip(names, fused.weight.split(sizes), strict=True):
                yield f"{prefix}{name}.weight", weight
            if fused.bias is not None:
                for name, bias in zip(names, fused.bias.split(sizes), strict=True):
                    yield f"{prefix}{name}.bias", bias
        if self.q_norm is not None and self.k_norm is not None:
            yield f"{prefix}self_attn.q_norm.weight", self.q_norm
            yield f"{prefix}self_attn.k_norm.weight", self.k_norm


class Decoder(nn.Module):
    """Token ids in, final hidden states out; the LM head is left to who needs logits or log-probabilities."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Parameter(torch.empty(spec.vocab_size, spec.hidden_size))
        self.layers = nn.ModuleList(DecoderLayer(spec, i) for i in range(spec.num_layers))
        self.norm = nn.Parameter(torch.empty(spec.hidden_size))
        self._lm_head = (
            None
            if spec.tie_word_embeddings
            else nn.Parameter(torch.empty(spec.vocab_size, spec.hidden_size))
        )
        # a plain attribute, so that `.to(bfloat16)` leaves the angles in float32
        self.cos_sin = torch.empty(0)

    def build_rope_table(self, device: torch.device | str) -> None:
        """Positions beyond the table do not exist for this model."""
        spec = self.spec
        self.cos_sin = rope_table(
            spec.max_positions,
            spec.head_dim,
            theta=spec.rope_theta,
            scaling=spec.rope_llama3,
            linear_factor=spec.rope_linear_factor,
        ).to(device)

    @property
    def lm_head(self) -> torch.Tensor:
        """[vocab, H]; the embedding itself where the two are tied."""
        return self.embed_tokens if self._lm_head is None else self._lm_head

    def forward(
        self, token_ids_T: torch.Tensor, positions_T: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """[T] ids and positions -> [T, H], after the final norm."""
        x_TH = nn.functional.embedding(token_ids_T, self.embed_tokens)
        cos_sin_TD = self.cos_sin[positions_T]
        for layer in self.layers:
            x_TH = layer(x_TH, cos_sin_TD, attend)
        return rms_norm(x_TH, self.norm, eps=self.spec.rms_norm_eps)

    def logits(self, hidden_TH: torch.Tensor) -> torch.Tensor:
        """[T, H] -> [T, vocab]."""
        return linear(hidden_TH, self.lm_head)

    def hf_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(Hugging Face's name, parameter or slice of one), each once, in a fixed order."""
        yield "model.embed_tokens.weight", self.embed_tokens
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer), "layers holds decoder layers alone"
            yield from layer.hf_tensors()
        yield "model.norm.weight", self.norm
        if self._lm_head is not None:
            yield "lm_head.weight", self._lm_head
