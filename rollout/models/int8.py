"""Quantization of a decoder's weights to 8 bits, by the sender of an update or by an engine that loads a model."""

from collections.abc import Iterable, Iterator

import torch

from kernels.int8_linear import quantize_channels
from rollout.models.checkpoint import empty_decoder
from rollout.models.decoder import Decoder

__all__ = ["int8_decoder", "int8_weights"]

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"


def int8_weights(
    named_weights: Iterable[tuple[str, torch.Tensor]],
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every matrix except the embedding as `name` in int8 and `name_scale` in float32, and other tensors
    unchanged.

    The choice depends only on the name, because the rows of a batch must not decide how a row is computed. A tied LM
    head becomes a separate matrix, since the embedding is looked up, not multiplied.

    Raises:
        ValueError: a weight is not finite.
    """
    embedding, has_head = None, False
    for name, tensor in named_weights:
        if name == _EMBEDDING:
            embedding = tensor
        has_head |= name == _HEAD
        if tensor.ndim == 2 and name != _EMBEDDING:
            yield from _quantized(name, tensor)
        else:
            yield name, tensor
    if embedding is not None and not has_head:
        yield from _quantized(_HEAD, embedding)


@torch.no_grad()
def int8_decoder(decoder: Decoder) -> Decoder:
    """Return an 8-bit copy of a decoder on the CPU.

    Raises:
        ValueError: the decoder is not on the CPU.
    """
    weight = decoder.embed_tokens
    if weight.device.type != "cpu":
        raise ValueError(
            f"engine.weight_dtype=int8 runs only on CPUs, got a model on {weight.device}; use engine.weight_dtype=plain"
        )
    copy = empty_decoder(decoder.spec, dtype=weight.dtype, is_int8=True)
    targets = dict(copy.hf_tensors())
    for name, tensor in int8_weights(decoder.hf_tensors()):
        targets[name].copy_(tensor)
    return copy


def _quantized(name: str, weight_NK: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    integers_NK, scale_N = quantize_channels(weight_NK)
    yield name, integers_NK
    yield f"{name}_scale", scale_N
