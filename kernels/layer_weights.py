"""Weights of a decoder layer, as `kernels.decoder_layers` takes them."""

from dataclasses import dataclass

import torch

__all__ = ["LayerWeights", "LinearWeights"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearWeights:
    """Weight of one linear op."""

    weight: torch.Tensor
    """Weight [out, in], in the compute type or int8."""
    scale: torch.Tensor | None = None
    """[out] float32, scales of an int8 weight."""
    bias: torch.Tensor | None = None
    """[out]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """Weights of one layer: RMSNorm, attention with RoPE and optional norms of queries and keys, RMSNorm, SwiGLU."""

    input_norm: torch.Tensor
    qkv: LinearWeights
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    o: LinearWeights
    post_attention_norm: torch.Tensor
    gate_up: LinearWeights
    down: LinearWeights
