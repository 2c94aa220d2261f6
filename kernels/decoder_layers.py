"""Runs all layers of a dense decoder over a paged cache in one call, on devices where the calls of single ops are costly.

The layer is that of `kernels.layer_weights.LayerWeights`. An implementation calls the same functions in the same order as the
ops of this package, so it gives the same bits. Forward only. On a CPU, at one token per step of a model of 135 M parameters,
calls of single ops took a quarter of the time.

Shape legend: T = packed tokens, H = hidden size, N = query heads, M = KV heads, D = width of a head.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from kernels.attention_layout import AttentionLayout
from kernels.cpu.attention import takes_heads
from kernels.cpu.decoder_layers import NativeDecoderLayers
from kernels.cpu.native_functions import runs_natively
from kernels.layer_weights import LayerWeights, LinearWeights
from kernels.paged_kv import PagedKV

__all__ = ["DecoderLayers", "LayerWeights", "LinearWeights", "make_decoder_layers"]


class DecoderLayers(Protocol):
    """All layers, their caches, and packed copies of their weights."""

    seconds: dict[str, float]
    """Time spent in parts of the layers since the weights were last packed."""

    def __call__(
        self,
        x_TH: torch.Tensor,
        cos_sin_TD: torch.Tensor,
        block_ids_T: torch.Tensor,
        offsets_T: torch.Tensor,
        layout: AttentionLayout,
    ) -> torch.Tensor:
        """Returns the residual stream [T, H] after the last layer, in the memory of `x_TH`; writes keys and values.

        Args:
            x_TH: residual stream before the first layer; contiguous.
            cos_sin_TD: rows of the RoPE table at the positions of the tokens; contiguous.
            block_ids_T: int64, the cache block of each token.
            offsets_T: int64, the place of each token in its block.
            layout: result of `paged_layout` for the same tokens.
        """
        ...

    def refresh(self, *, num_threads: int | None = None) -> None:
        """Packs the present values of the weights again, in the same memory."""


def make_decoder_layers(
    layers: Sequence[LayerWeights],
    caches: Sequence[PagedKV],
    *,
    num_heads: int,
    eps: float,
    num_threads: int | None = None,
) -> DecoderLayers | None:
    """Packs all layers for one call; returns None where single ops are to be called.

    Args:
        layers: weights, contiguous.
        caches: keys and values of each layer.
        num_heads: number of query heads.
        eps: epsilon of every norm.
        num_threads: CPU threads that pack the weights; None: as many as PyTorch has.

    Raises:
        ValueError: a tensor is not contiguous, or not of the type of the others.
    """
    _, num_kv_heads, _, head_dim = caches[0].keys.shape
    has_heads = takes_heads(num_heads, num_kv_heads, head_dim)
    if has_heads and runs_natively(layers[0].input_norm):
        return NativeDecoderLayers(
            layers, caches, num_heads=num_heads, eps=eps, num_threads=num_threads
        )
    return None
