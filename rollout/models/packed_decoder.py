"""A decoder with its weights packed for the kernels."""

from collections.abc import Mapping, Sequence

import torch

from kernels.decoder_layers import DecoderLayers
from kernels.paged_kv import PagedKV
from rollout.models.decoder import Decoder
from rollout.models.native_layers import native_layers

__all__ = ["PackedDecoder"]

_PREPARING_THREADS = 1  # more would compete with the threads of a step that runs meanwhile


class PackedDecoder:
    """One set of weights of an engine: a decoder, and packed copies of its weights where kernels prefer those.

    A packed copy is as large as the weight and does not follow changes of the decoder: `pack` makes it again, in the same
    memory.

    Args:
        decoder: the decoder to pack; nothing is packed until `pack`.
        caches: KV cache of each layer, which the layers will read and write.
    """

    def __init__(self, decoder: Decoder, caches: Sequence[PagedKV]) -> None:
        self.decoder = decoder
        self.tensors: Mapping[str, torch.Tensor] = dict(decoder.hf_tensors())
        """Weights of the decoder by Hugging Face's names."""
        self.layers: DecoderLayers | None = None
        """All layers in one call; None where the decoder calls ops one by one."""
        self.packed_head: torch.Tensor | None = None
        """Packed LM head; None where it is read as it is."""
        self.is_packed = False
        self._caches = caches

    @property
    def layer_seconds(self) -> Mapping[str, float]:
        """Time spent in parts of the layers since the weights were packed; empty where ops are called one by one."""
        return {} if self.layers is None else self.layers.seconds

    def pack(self, *, num_threads: int | None = None) -> None:
        """Packs the present values of the decoder.

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
        """Packs verified weights before their commit, possibly while another thread runs a step."""
        self.pack(num_threads=_PREPARING_THREADS)
