"""The layers of a decoder for `kernels.decoder_layers`, where that takes them."""

from collections.abc import Sequence

from kernels.decoder_layers import (
    DecoderLayers,
    LayerWeights,
    LinearWeights,
    make_decoder_layers,
)
from kernels.paged_kv import PagedKV
from rollout.models.decoder import Decoder, DecoderLayer, Int8Linear, Linear

__all__ = ["layer_weights", "native_layers"]


def native_layers(
    decoder: Decoder, caches: Sequence[PagedKV], *, num_threads: int | None = None
) -> DecoderLayers | None:
    """All layers in one call, over these caches; None where they run op by op.

    Args:
        decoder: its matrices are read now; caches and norms at every call.
        caches: one per layer.
        num_threads: that lay the matrices out; None: as many as PyTorch has.
    """
    spec = decoder.spec
    return make_decoder_layers(
        list(map(layer_weights, decoder.decoder_layers)),
        caches,
        num_heads=spec.num_heads,
        eps=spec.rms_norm_eps,
        num_threads=num_threads,
    )


def layer_weights(layer: DecoderLayer) -> LayerWeights:
    """The tensors of one layer, by what they do."""
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
