"""Runs the model on a batch: builds its tensors, moves blocks, writes and reads the paged cache.

Shape legend: T = tokens of the batch, R = rows to sample from, V = vocabulary.
"""

import contextlib
import functools
import math
import mmap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from kernels.attention import AttentionLayout, PagedKV, Segment, paged_attention, paged_layout
from kernels.cpu.ops import cache_lanes
from kernels.decoder_layers import DecoderLayers
from rollout.engine.core import Batch
from rollout.models.decoder import Decoder
from rollout.models.native_layers import native_layers
from rollout.models.spec import DecoderSpec

__all__ = ["Runner", "bytes_per_block"]


def bytes_per_block(
    spec: DecoderSpec, *, block_size: int, dtype: torch.dtype, is_int8: bool = False
) -> int:
    """Keys and values of `block_size` tokens, all layers; in 8 bits with a float32 scale per token and head."""
    bytes_per_head = spec.head_dim + 4 if is_int8 else spec.head_dim * dtype.itemsize
    return 2 * spec.num_layers * spec.num_kv_heads * block_size * bytes_per_head


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    token_ids_T: torch.Tensor
    positions_T: torch.Tensor
    block_ids_T: torch.Tensor
    offsets_T: torch.Tensor
    last_rows_R: torch.Tensor  # of the chunks that sample, and all behind them
    layout: AttentionLayout


class Runner:
    """Owns the KV cache: one pair of [blocks, KV heads, block_size, head width] per layer."""

    def __init__(
        self,
        spec: DecoderSpec,
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        is_int8: bool = False,
    ) -> None:
        self._block_size = block_size
        self._device = device
        shape = (num_blocks, spec.num_kv_heads, block_size, spec.head_dim)
        lanes = cache_lanes(
            dtype,
            device,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            block_size=block_size,
        )
        self._written: set[int] = set()  # blocks, since the last reset
        # zeros, because an unwritten slot must be finite
        self._caches = [
            PagedKV.zeros(
                shape,
                dtype=dtype,
                is_int8=is_int8,
                lanes=lanes,
                make=functools.partial(_zeros, device),
            )
            for _ in range(spec.num_layers)
        ]
        self._native_decoder: Decoder | None = None
        self._native_layers: DecoderLayers | None = None  # of that decoder, as is
        self._head_panels: torch.Tensor | None = None

    @property
    def layer_seconds(self) -> Mapping[str, float]:
        """What parts of the layers took in all steps; empty where they run op by op."""
        return {} if self._native_layers is None else self._native_layers.seconds

    @torch.inference_mode()
    def run(self, decoder: Decoder, batch: Batch) -> torch.Tensor:
        """[R, V] logits after the last token of each chunk that reaches the end of its log, and after each of its draft."""
        self._copy_blocks(batch)
        inputs = self._inputs(batch)
        hidden_TH = self._forward(decoder, inputs)
        return decoder.logits(hidden_TH[inputs.last_rows_R], self._head_panels)

    def _lay_out(self, decoder: Decoder) -> None:
        """Lay out the weights for the kernels, after every `reset`."""
        self._native_layers = self._head_panels = None  # their memory is used again
        self._native_layers = native_layers(decoder, self._caches)
        self._head_panels = decoder.pack_head()
        self._native_decoder = decoder

    def _forward(self, decoder: Decoder, inputs: _Inputs) -> torch.Tensor:
        if decoder is not self._native_decoder:
            self._lay_out(decoder)
        native = self._native_layers
        if native is not None:
            return decoder.around(
                lambda x_TH, cos_sin_TD: native(
                    x_TH, cos_sin_TD, inputs.block_ids_T, inputs.offsets_T, inputs.layout
                ),
                inputs.token_ids_T,
                inputs.positions_T,
            )

        def attend(
            layer: int, q_TND: torch.Tensor, k_TMD: torch.Tensor, v_TMD: torch.Tensor
        ) -> torch.Tensor:
            cache = self._caches[layer]
            cache.write(k_TMD, v_TMD, inputs.block_ids_T, inputs.offsets_T)
            return paged_attention(q_TND, cache, inputs.layout)

        return decoder(inputs.token_ids_T, inputs.positions_T, attend)

    def reset(self, kept_blocks: Collection[int] = ()) -> None:
        """New weights: lay them out at the next step, and forget all other blocks, so that a NaN of a bad update cannot linger in slots not yet written again.

        A masked key has weight 0, and 0 * NaN is NaN. Costs little next to the forwards that wrote the blocks.
        """
        # an engine has two decoders in turn: after a second commit without a step the same object holds other weights
        self._native_decoder = None
        forgotten = self._written.difference(kept_blocks)
        blocks = torch.tensor(sorted(forgotten), dtype=torch.int64, device=self._device)
        for cache in self._caches:
            cache.clear_blocks(blocks)
        self._written -= forgotten

    def _copy_blocks(self, batch: Batch) -> None:
        if not batch.block_copies:
            return
        source, target = (
            torch.tensor(blocks, device=self._device)
            for blocks in zip(*batch.block_copies, strict=True)
        )
        for cache in self._caches:
            cache.copy_blocks(source, target)

    def _inputs(self, batch: Batch) -> _Inputs:
        token_ids: list[int] = []
        positions: list[int] = []
        blocks: list[int] = []
        last_rows: list[int] = []
        segments: list[Segment] = []
        for chunk in batch.chunks:
            state = chunk.state
            start, end = state.num_computed, state.num_computed + chunk.num_rows
            segments.append(
                Segment(
                    first_row=len(token_ids),
                    num_queries=chunk.num_rows,
                    first_position=start,
                    key_index=state.block_table,
                )
            )
            token_ids += [*state.token_ids[start : start + chunk.num_tokens], *chunk.draft]
            positions += range(start, end)
            blocks += [state.block_table[p // self._block_size] for p in range(start, end)]
            if chunk.samples:
                last_rows += range(len(token_ids) - 1 - len(chunk.draft), len(token_ids))
        self._written.update(blocks)
        columns = (token_ids, positions, blocks, last_rows)
        tensors = [torch.tensor(c, dtype=torch.int64, device=self._device) for c in columns]
        return _Inputs(
            token_ids_T=tensors[0],
            positions_T=tensors[1],
            block_ids_T=tensors[2],
            offsets_T=tensors[1] % self._block_size,
            last_rows_R=tensors[3],
            layout=paged_layout(
                segments,
                num_rows=len(token_ids),
                block_size=self._block_size,
                device=self._device,
            ),
        )


def _zeros(device: torch.device, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that take no time, and on a CPU no memory either before they are written: its kernel gives zeroed pages."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # a decode step touches every head of every layer: with 4 KB pages, thousands of them at a page walk each
        with contextlib.suppress(OSError):  # advice: a kernel without huge pages refuses it
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(*shape)
