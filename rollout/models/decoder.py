"""Decoder of trainer and engine, on a packed [T, hidden] layout.

The two users differ only in `attend`: the trainer attends over packed keys with gradients, the engine writes a paged
cache and attends over that. Query, key and value weights are one parameter, and so are gate and up, which saves
matrix products. `hf_tensors` yields every parameter, or its slice, under Hugging Face's own name; loading, saving and
weight updates all use it.

Shape legend: T = packed tokens, H = hidden size, N = query heads, M = KV heads, D = width of a head.
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kernels.linear import head_logits
from kernels.packed_weight import pack_weight
from kernels.rms_norm import rms_norm
from kernels.rope import rope_table
from rollout.models.decoder_spec import DecoderSpec
from rollout.models.families.table import FAMILIES
from rollout.models.layers import Attend, DecoderLayer, Int8Linear, Linear

__all__ = ["Decoder", "Layers"]

Layers = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Function that runs all layers: (residual stream [T, H], cosines and sines [T, D]) -> the stream after the last
layer."""


class Decoder(nn.Module):
    """Transformer that maps token ids to final hidden states; `logits` applies the LM head.

    With `is_int8`, every matrix except the embedding has 8 bits, and the LM head is separate from the embedding even
    if the config ties them.
    """

    def __init__(self, spec: DecoderSpec, *, is_int8: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.is_int8 = is_int8
        linear_type = Int8Linear if is_int8 else Linear
        self.embed_tokens = nn.Parameter(torch.empty(spec.vocab_size, spec.hidden_size))
        layer_type = FAMILIES[spec.architecture].layer
        self.layers = nn.ModuleList(
            layer_type(spec, i, linear_type) for i in range(spec.num_layers)
        )
        self.norm = nn.Parameter(torch.empty(spec.hidden_size))
        has_own_head = is_int8 or not spec.tie_word_embeddings
        self._lm_head = (
            linear_type(spec.hidden_size, spec.vocab_size, bias=False) if has_own_head else None
        )
        self.recomputes_layers = False
        """Whether to keep only the input of each layer for the backward, which then computes the layer again."""
        # a plain attribute, so that `.to(bfloat16)` leaves the angles in float32
        self.cos_sin = torch.empty(0)

    def build_rope_table(self, device: torch.device | str) -> None:
        """Build the table of rotary angles. It limits the positions that this model supports."""
        spec = self.spec
        self.cos_sin = rope_table(
            spec.max_positions,
            spec.head_dim,
            theta=spec.rope_theta,
            scaling=spec.rope_llama3,
            linear_factor=spec.rope_linear_factor,
        ).to(device)

    @property
    def decoder_layers(self) -> Iterator[DecoderLayer]:
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer), "layers must hold only decoder layers"
            yield layer

    @property
    def lm_head(self) -> torch.Tensor:
        """Weight of the LM head, [vocab, H]; the embedding itself if the two are tied."""
        return self.embed_tokens if self._lm_head is None else self._lm_head.weight

    def forward(
        self, token_ids_T: torch.Tensor, positions_T: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """Map [T] ids and positions to [T, H] hidden states after the final norm."""

        def layers(x_TH: torch.Tensor, cos_sin_TD: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                if self.recomputes_layers and torch.is_grad_enabled():
                    arguments = (x_TH, cos_sin_TD, attend)
                    x_TH = checkpoint(
                        layer, *arguments, use_reentrant=False, preserve_rng_state=False
                    )
                else:
                    x_TH = layer(x_TH, cos_sin_TD, attend)
            return x_TH

        return self.around(layers, token_ids_T, positions_T)

    def around(
        self, layers: Layers, token_ids_T: torch.Tensor, positions_T: torch.Tensor
    ) -> torch.Tensor:
        """Run the embedding, `layers`, and the final norm. `layers` may run the layers in another way than
        `forward` does."""
        x_TH = nn.functional.embedding(token_ids_T, self.embed_tokens)
        x_TH = layers(x_TH, self.cos_sin[positions_T])
        return rms_norm(x_TH, self.norm, eps=self.spec.rms_norm_eps)

    def logits(
        self, hidden_TH: torch.Tensor, packed_head: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Map [T, H] to [T, vocab]. `packed_head` is the result of `pack_head` for the current weights, or None."""
        if self._lm_head is None:
            return head_logits(hidden_TH, self.embed_tokens, packed_head)
        if isinstance(self._lm_head, Linear):
            return head_logits(hidden_TH, self._lm_head.weight, packed_head)
        return self._lm_head(hidden_TH, packed_head)

    def pack_head(
        self, *, into: torch.Tensor | None = None, num_threads: int | None = None
    ) -> torch.Tensor | None:
        """Pack the LM head; return None if its linear needs no packed copy. The arguments are those of
        `pack_weight`."""
        dtype = self.embed_tokens.dtype
        return pack_weight(self.lm_head, dtype, into=into, num_threads=num_threads)

    def hf_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (Hugging Face's name, parameter or slice of one) for each tensor once, in a fixed order."""
        for _, tensors in self.hf_parts():
            yield from tensors()

    def hf_parts(
        self,
    ) -> Iterator[tuple[nn.Module, Callable[[], Iterator[tuple[str, torch.Tensor]]]]]:
        """Yield the tensors of `hf_tensors` in parts: a module, and a function that yields those of its tensors.

        Call the function only while the module's own parameters are complete, for example gathered from shards.
        """
        yield self, self._embedding
        for layer in self.decoder_layers:
            yield layer, layer.hf_tensors
        yield self, self._norm_and_head

    def _embedding(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "model.embed_tokens.weight", self.embed_tokens

    def _norm_and_head(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "model.norm.weight", self.norm
        if self._lm_head is not None:
            for suffix, rows in self._lm_head.named_rows():
                yield f"lm_head.{suffix}", rows
