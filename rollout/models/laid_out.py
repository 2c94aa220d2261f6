"""A decoder's weights as the kernels read them."""

from collections.abc import Sequence

from kernels.paged_kv import PagedKV
from rollout.models.decoder import Decoder
from rollout.models.native_layers import native_layers

__all__ = ["LaidOutDecoder"]


class LaidOutDecoder:
    """The layers over their caches in one call, and the LM head; both None where the weights are read as they stand.

    What is laid out is a copy of every matrix, of the same size, and is not changed by new values in the decoder.

    Args:
        decoder: laid out now.
        caches: one per layer.
        num_threads: that lay it out; None: as many as PyTorch has.
    """

    def __init__(
        self, decoder: Decoder, caches: Sequence[PagedKV], *, num_threads: int | None = None
    ) -> None:
        self.decoder = decoder
        self.layers = native_layers(decoder, caches, num_threads=num_threads)
        self.packed_head = decoder.pack_head(num_threads=num_threads)

    def refresh(self, *, num_threads: int | None = None) -> None:
        """Lay out what the decoder holds now, in the memory of what it held before."""
        if self.layers is not None:
            self.layers.refresh(num_threads=num_threads)
        self.decoder.pack_head(into=self.packed_head, num_threads=num_threads)
