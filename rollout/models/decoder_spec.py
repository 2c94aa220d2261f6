"""Specification of a decoder."""

from dataclasses import dataclass

from kernels.rope import Llama3Scaling

__all__ = ["DecoderSpec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """Decoder-only transformer with RMSNorm, RoPE, grouped-query attention and SwiGLU."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_llama3: Llama3Scaling | None
    rope_linear_factor: float
    max_positions: int  # maximum context; not longer than the sliding window, if there is one
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    eos_token_ids: tuple[int, ...]
