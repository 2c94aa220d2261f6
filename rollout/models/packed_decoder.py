"""Decoder with its weights packed for the kernels."""

from collections.abc import Mapping, Sequence

import torch

from kernels.decoder_layers import DecoderLayers
from kernels.paged_kv import PagedKV
from rollout.models.decoder import Decoder
from rollout.models.native_layers import native_layers

__all__ = ["PackedDecoder"]

_PREPARING_THREADS = 1  # more threads would compete with those of a concurrent step


class PackedDecoder:
    """One set of an engine's weights: a decoder, and packed copies of those weights for which kernels prefer them.

    A packed copy is as large as the weight, and does not follow changes of the decoder. `pack` renews it in the same
    memory.

    Args:
        decoder: decoder to pack; nothing is packed before `pack`.
        caches: KV cache of each layer, which the layers read and write.
    """

    def __init__(self, decoder: Decoder, caches: Sequence[PagedKV]) -> None:
        self.decoder = decoder
        self.tensors: Mapping[str, torch.Tensor] = dict(decoder.hf_tensors())
        """Weights of the decoder by Hugging Face's names."""
        self.layers: DecoderLayers | None = None
        """Call that runs all layers; None if the decoder calls ops one by one."""
        self.packed_head: torch.Tensor | None = None
        """Packed LM head; None if the kernels read the weight itself."""
        self.is_packed = False
        self._caches = caches

    @property
    def layer_seconds(self) -> Mapping[str, float]:
        """Time spent in parts of the layers since the weights were packed; empty where ops are called one by one."""
        return {} if self.layers is None else self.layers.seconds

    def pack(self, *, num_threads: int | None = None) -> None:
        """Pack the current values of the decoder.

        Args:
            num_threads: CPU threads to use; None: as many as PyTorch has.
        """
        if not self.is_packed:
            self.layers = native_layers(self.decoder, self._caches, num_threads=num_threads)
        elif self.layers is not None:
            self.layers.refresh(num_threads=num_threads)
        self.packed_head = self.decoder.pack_head(into=self.packed_head, num_threads=num_threads)
        self.is_packed = True

    def prepare(self) -> None:
        """Pack verified weights before their commit, possibly while another thread runs a step."""
        self.pack(num_threads=_PREPARING_THREADS)
