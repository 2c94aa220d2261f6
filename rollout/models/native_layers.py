"""Conversion of a decoder's layers for `kernels.decoder_layers`, which runs all of them in one call."""

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
    """Return a call that runs all layers over these caches; None if the family or the device does not allow it.

    Args:
        decoder: decoder whose matrices are packed now; its norms are read at every call.
        caches: KV cache of each layer, read and written at every call.
        num_threads: CPU threads that pack the matrices; None: as many as PyTorch has.
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
    """Return the weights of one layer."""
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
