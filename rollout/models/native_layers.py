"""Gives the layers of a decoder to `kernels.decoder_layers`, where family and device allow it."""

from collections.abc import Sequence

from kernels.decoder_layers import (
    DecoderLayers,
    LayerWeights,
    LinearWeights,
    make_decoder_layers,
)
from kernels.paged_kv import PagedKV
from rollout.models.decoder import Decoder
from rollout.models.families.table import FAMILIES
from rollout.models.layers import DecoderLayer, Int8Linear, Linear

__all__ = ["layer_weights", "native_layers"]


def native_layers(
    decoder: Decoder, caches: Sequence[PagedKV], *, num_threads: int | None = None
) -> DecoderLayers | None:
    """Packs all layers for one call over these caches; returns None where ops are called one by one.

    Args:
        decoder: its matrices are packed now; its norms are read at every call.
        caches: KV cache of each layer.
        num_threads: CPU threads that pack; None: as many as PyTorch has.
    """
    spec = decoder.spec
    if not FAMILIES[spec.architecture].runs_in_one_call:
        return None
    return make_decoder_layers(
        list(map(layer_weights, decoder.decoder_layers)),
        caches,
        num_heads=spec.num_heads,
        eps=spec.rms_norm_eps,
        num_threads=num_threads,
    )


def layer_weights(layer: DecoderLayer) -> LayerWeights:
    """Returns the weights of one layer."""
    return LayerWeights(
        input_norm=layer.input_norm,
        qkv=_linear_weights(layer.qkv_proj),
        q_norm=layer.q_norm,
        k_norm=layer.k_norm,
        o=_linear_weights(layer.o_proj),
        post_attention_norm=layer.post_attention_norm,
        gate_up=_linear_weights(layer.gate_up_proj),
        down=_linear_weights(layer.down_proj),
    )


def _linear_weights(linear: Linear | Int8Linear) -> LinearWeights:
    scale = linear.scale if isinstance(linear, Int8Linear) else None
    return LinearWeights(weight=linear.weight, scale=scale, bias=linear.bias)
