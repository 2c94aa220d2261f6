"""Runs the model on a batch: builds its tensors, moves blocks, writes and reads the paged cache.

Shape legend: T = tokens of the batch, R = rows to sample from, V = vocabulary.
"""

import contextlib
import functools
import math
import mmap
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from kernels.attention import AttentionLayout, PagedKV, Segment, paged_attention, paged_layout
from kernels.paged_kv import cache_lanes
from rollout.config import EngineConfig, StorageDtype
from rollout.core import StepBatch
from rollout.models.decoder import Decoder
from rollout.models.decoder_spec import DecoderSpec
from rollout.models.packed_decoder import PackedDecoder

__all__ = ["Runner", "bytes_per_block", "num_cache_blocks"]


def bytes_per_block(
    spec: DecoderSpec, *, block_size: int, dtype: torch.dtype, is_int8: bool = False
) -> int:
    """Returns the bytes of keys and values of `block_size` tokens in all layers; in 8 bits, with a float32 scale per token
    and head."""
    bytes_per_head = spec.head_dim + 4 if is_int8 else spec.head_dim * dtype.itemsize
    return 2 * spec.num_layers * spec.num_kv_heads * block_size * bytes_per_head


def num_cache_blocks(spec: DecoderSpec, config: EngineConfig, *, dtype: torch.dtype) -> int:
    """Returns how many blocks the KV cache of an engine has.

    Raises:
        ValueError: it cannot hold one.
    """
    is_int8 = config.kv_dtype is StorageDtype.int8
    block_bytes = bytes_per_block(spec, block_size=config.block_size, dtype=dtype, is_int8=is_int8)
    num_blocks = int(config.kv_cache_gb * 1e9 // block_bytes)
    if num_blocks == 0:
        raise ValueError(
            f"engine.kv_cache_gb must hold at least one block of {block_bytes / 1e9:.4f} GB, "
            f"got {config.kv_cache_gb}"
        )
    return num_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    token_ids_T: torch.Tensor
    positions_T: torch.Tensor
    block_ids_T: torch.Tensor
    offsets_T: torch.Tensor
    last_rows_R: torch.Tensor  # last rows of the chunks that sample, and rows of their drafts
    layout: AttentionLayout


class Runner:
    """Owns the KV cache: keys and values [blocks, KV heads, block_size, head width] of each layer.

    Args:
        spec: architecture of the models that it runs.
        num_blocks: blocks of the cache.
        block_size: tokens of a block.
        dtype: type of the model.
        device: device of model and cache.
        is_int8: whether keys and values are stored in 8 bits.
    """

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
        self._written: set[int] = set()  # blocks that are not zeros
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

    def packed(self, decoder: Decoder) -> PackedDecoder:
        """Returns a decoder that will run over this cache."""
        return PackedDecoder(decoder, self._caches)

    @torch.inference_mode()
    def run(self, weights: PackedDecoder, batch: StepBatch) -> torch.Tensor:
        """Computes logits [R, V] after the last token of each chunk that reaches the end of its log, and after each token of
        its draft.

        Args:
            weights: result of `packed`; packed by its first step, if it was not before.
            batch: chunks of requests.
        """
        if not weights.is_packed:
            weights.pack()
        self._copy_blocks(batch)
        inputs = self._inputs(batch)
        hidden_TH = self._forward(weights, inputs)
        return weights.decoder.logits(hidden_TH[inputs.last_rows_R], weights.packed_head)

    def _forward(self, weights: PackedDecoder, inputs: _Inputs) -> torch.Tensor:
        decoder, layers = weights.decoder, weights.layers
        if layers is not None:
            return decoder.around(
                lambda x_TH, cos_sin_TD: layers(
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

    def clear_blocks(self, *, kept_blocks: Collection[int] = ()) -> None:
        """Sets all other blocks that were written to zeros, so that no NaN of bad weights stays in an unwritten slot.

        A masked key has weight 0, and 0 * NaN is NaN. This costs little next to the forwards that wrote the blocks.
        """
        forgotten = self._written.difference(kept_blocks)
        blocks = torch.tensor(sorted(forgotten), dtype=torch.int64, device=self._device)
        for cache in self._caches:
            cache.clear_blocks(blocks)
        self._written -= forgotten

    def _copy_blocks(self, batch: StepBatch) -> None:
        if not batch.block_copies:
            return
        source, target = (
            torch.tensor(blocks, device=self._device)
            for blocks in zip(*batch.block_copies, strict=True)
        )
        for cache in self._caches:
            cache.copy_blocks(source, target)

    def _inputs(self, batch: StepBatch) -> _Inputs:
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
